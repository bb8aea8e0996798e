"""Accuracy of every exit."""

from collections.abc import Mapping

from torch import Tensor


def exit_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the top-1 and top-5 hits of every exit.

    Both are bool, (exits, batch). With five classes or fewer, every image is a top-5 hit.
    """
    choices = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
    hits = choices == labels[:, None]
    return hits[..., 0], hits.any(dim=-1)


def validation_top1(metrics: Mapping[str, float]) -> list[float]:
    """Return the top-1 of every exit from an epoch's metrics."""
    return [v for name, v in metrics.items() if name.startswith("val/") and name.endswith("/top1")]
