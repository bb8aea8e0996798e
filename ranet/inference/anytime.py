"""Anytime prediction: how right and how sure every exit is, image by image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from ranet.training.distributed import gather
from ranet.training.evaluation import compute_logits, exit_hits
from ranet.training.reporter import Batches


@dataclass(frozen=True, eq=False)
class Scores:
    """What each exit says about each image of a split; all are (exits, samples), on the CPU."""

    confidences: Tensor
    """Probability of the exit's answer, float32."""
    correct: Tensor
    """Whether the answer is the label."""
    correct_top5: Tensor
    """Whether the label is among the exit's five most probable classes."""

    def __post_init__(self) -> None:
        shapes = {name: tuple(values.shape) for name, values in self.state().items()}
        if len(set(shapes.values())) != 1 or self.confidences.ndim != 2:
            raise ValueError(f"scores must all be (exits, samples), got {shapes}")

    def state(self) -> dict[str, Tensor]:
        """Give the tensors by name, to be saved."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Scores":
        """Make scores from what `state` gave."""
        return cls(**state)


@torch.inference_mode()
def collect_scores(
    model: nn.Module,
    batches: Batches,
    *,
    normalize: Callable[[Tensor], Tensor],
    device: torch.device,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Scores:
    """Run all exits over a split; every worker takes its share and gets the scores of all.

    Args:
        model: images -> logits (exits, batch, classes); it is left in evaluation mode.
        batches: each image once, over all workers.
        normalize: uint8 images -> the model's input.
        device: where the model is.
        precision: type of the forward pass.

    Returns:
        The scores of every image, in an order that is the same on every worker.
    """
    model.eval()
    parts: list[Tensor] = []
    with batches.epoch(0) as reader:
        for images, labels in reader:
            logits = compute_logits(model, images, normalize, precision).float()
            confidences = logits.softmax(dim=-1).amax(dim=-1)
            parts.append(torch.stack((confidences, *exit_hits(logits, labels))))
    # (confidence or one of two hits, exits, samples); a worker without batches knows no exits.
    own = torch.cat(parts, dim=2) if parts else torch.zeros((3, 0, 0), device=device)
    scores = torch.cat([each for each in gather(own) if each.numel()], dim=2).cpu()
    assert scores.shape[2] == batches.num_samples, "every image is scored exactly once"
    return Scores(scores[0].clone(), scores[1].bool(), scores[2].bool())


def anytime_accuracy(scores: Scores) -> tuple[Tensor, Tensor]:
    """Top-1 and top-5 of every exit in percent, each (exits,), float64."""
    top1, top5 = (100 * hits.double().mean(dim=1) for hits in (scores.correct, scores.correct_top5))
    return top1, top5
