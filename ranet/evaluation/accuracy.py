"""Logits and accuracy of every exit."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor


def compute_logits(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    normalize: Callable[[Tensor], Tensor],
    precision: Literal["float32", "bfloat16"],
) -> Tensor:
    """Map uint8 images to logits (exits, batch, classes), by autocast where not in float32."""
    # Normalised in float32: bfloat16 has not the digits to subtract a mean. Autocast rounds after.
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return model(normalize(images))


def exit_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Tell where the label is an exit's first choice, and where among its first five.

    Both are bool, (exits, batch); with fewer than five classes the second is always true.
    """
    choices = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
    hits = choices == labels[:, None]
    return hits[..., 0], hits.any(dim=-1)


def validation_top1(metrics: Mapping[str, float]) -> list[float]:
    """Top-1 of every exit, first exit first, as `evaluate` gave it."""
    return [v for name, v in metrics.items() if name.startswith("val/") and name.endswith("/top1")]
