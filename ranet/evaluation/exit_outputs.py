"""Anytime prediction: how right and how sure every exit is, image by image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ranet.distributed import gather
from ranet.evaluation.accuracy import compute_logits, exit_hits
from ranet.inference.ensemble import ExitEnsemble, mean_logits
from ranet.inference.policies import TOP_PROBABILITY, ExitPolicy
from ranet.inference.threshold_search import fit_budgets
from ranet.inference.thresholds import assign_exits
from ranet.protocols import Batches


@dataclass(frozen=True, eq=False)
class ExitOutputs:
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
    def from_state(cls, state: Mapping[str, Tensor]) -> "ExitOutputs":
        """Make scores from what `state` gave."""
        return cls(**state)


@dataclass(frozen=True, eq=False)
class SplitOutputs:
    """Scores of a split by either way to answer."""

    single: ExitOutputs
    ensemble: ExitOutputs

    def of(self, ensemble: ExitEnsemble) -> ExitOutputs:
        """Give the scores of one way."""
        return self.single if ensemble == "none" else self.ensemble

    def state(self) -> dict[str, Any]:
        """Give the tensors by name, to be saved."""
        return {"single": self.single.state(), "ensemble": self.ensemble.state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "SplitOutputs":
        """Make answers from what `state` gave."""
        return cls(**{name: ExitOutputs.from_state(scores) for name, scores in state.items()})


@torch.inference_mode()
def collect_exit_outputs(
    model: nn.Module,
    batches: Batches,
    *,
    normalize: Callable[[Tensor], Tensor],
    device: torch.device,
    precision: Literal["float32", "bfloat16"] = "float32",
    policy: ExitPolicy = TOP_PROBABILITY,
) -> SplitOutputs:
    """Run all exits over a split; every worker takes its share and gets the answers of all.

    Args:
        model: images -> logits (exits, batch, classes); it is left in evaluation mode.
        batches: each image once, over all workers.
        normalize: uint8 images -> the model's input.
        device: where the model is.
        precision: type of the forward pass.
        policy: confidence score of an exit.

    Returns:
        The answers to every image, in an order that is the same on every worker.
    """
    model.eval()
    parts: list[Tensor] = []
    with batches.epoch(0) as reader:
        for images, labels in reader:
            single = compute_logits(model, images, normalize, precision).float()
            rows = []
            for logits in (single, mean_logits(single)):
                rows += [policy.confidence(logits), *exit_hits(logits, labels)]
            parts.append(torch.stack(rows))
    # (confidence or one of two hits, twice, exits, samples); without batches no exits are known.
    own = torch.cat(parts, dim=2) if parts else torch.zeros((6, 0, 0), device=device)
    rows = torch.cat([each for each in gather(own) if each.numel()], dim=2).cpu()
    assert rows.shape[2] == batches.num_samples, "every image is scored exactly once"
    scores = [
        ExitOutputs(part[0].clone(), part[1].bool(), part[2].bool()) for part in rows.split(3)
    ]
    return SplitOutputs(single=scores[0], ensemble=scores[1])


def select_ensemble(
    val: SplitOutputs, costs: Sequence[float], budgets: Sequence[float]
) -> ExitEnsemble:
    """Let exits answer together where that is better on validation images, else alone.

    Better: by one image more than two standard errors of the lead in right answers, summed over
    images and budgets, with thresholds fitted on one half of the images and scored on the other,
    both ways.

    Args:
        val: answers to the validation images.
        costs: cumulative cost of every exit.
        budgets: mean costs per image to compare at, in the unit of the costs.
    """
    num_samples = val.single.correct.shape[1]
    if num_samples < 2:
        return "none"
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(0))
    halves = order.tensor_split(2)
    lead = torch.zeros(num_samples, dtype=torch.float64)
    for fit, rest in (halves, halves[::-1]):
        for scores, sign in ((val.ensemble, 1), (val.single, -1)):
            fitted = fit_budgets(scores.confidences[:, fit], scores.correct[:, fit], costs, budgets)
            for thresholds in fitted:
                exits = assign_exits(scores.confidences[:, rest], thresholds)
                right = scores.correct[:, rest].gather(0, exits[None])[0]
                lead[rest] += sign * right.double()  # whole numbers: equal answers leave nothing
    error = lead.std() * num_samples**0.5
    return "mean_logits" if lead.sum() - len(budgets) > 2 * error else "none"


def anytime_accuracy(scores: ExitOutputs) -> tuple[Tensor, Tensor]:
    """Top-1 and top-5 of every exit in percent, each (exits,), float64."""
    top1, top5 = (100 * hits.double().mean(dim=1) for hits in (scores.correct, scores.correct_top5))
    return top1, top5
