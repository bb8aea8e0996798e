"""Confidence and correctness of every exit for every image (anytime prediction)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ranet.config import ExitEnsemble
from ranet.distributed import gather
from ranet.evaluation.accuracy import exit_hits
from ranet.evaluation.cross_fit import cross_fit
from ranet.evaluation.forward import ForwardPass
from ranet.inference.ensemble import mean_logits
from ranet.inference.policies import TOP_PROBABILITY, ExitPolicy
from ranet.inference.precision import tf32
from ranet.inference.thresholds import assign_exits
from ranet.protocols import Batches


@dataclass(frozen=True, eq=False)
class ExitOutputs:
    """Confidence and hits of every exit on a split, (exits, samples)."""

    confidences: Tensor
    """Probability of the predicted class, float32."""
    correct: Tensor
    """True where the predicted class is the label."""
    correct_top5: Tensor
    """True where the label is among the five most probable classes."""

    def __post_init__(self) -> None:
        shapes = {name: tuple(values.shape) for name, values in self.state().items()}
        if len(set(shapes.values())) != 1 or self.confidences.ndim != 2:
            raise ValueError(f"exit outputs must all be (exits, samples), got {shapes}")

    def state(self) -> dict[str, Tensor]:
        """Return the tensors by name, to be saved."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "ExitOutputs":
        """Make exit outputs from the result of `state`."""
        return cls(**state)


@dataclass(frozen=True, eq=False)
class SplitOutputs:
    """Exit outputs of a split, of single exits and of ensembles."""

    single: ExitOutputs
    ensemble: ExitOutputs

    def of(self, ensemble: ExitEnsemble) -> ExitOutputs:
        """Return the exit outputs of one ensemble setting."""
        return self.single if ensemble == "none" else self.ensemble

    def state(self) -> dict[str, Any]:
        """Return the tensors by name, to be saved."""
        return {"single": self.single.state(), "ensemble": self.ensemble.state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "SplitOutputs":
        """Make split outputs from the result of `state`."""
        return cls(**{name: ExitOutputs.from_state(outputs) for name, outputs in state.items()})


@torch.inference_mode()
def collect_exit_outputs(
    forward: ForwardPass, batches: Batches, policy: ExitPolicy = TOP_PROBABILITY
) -> SplitOutputs:
    """Evaluate all exits on a split, over all workers.

    A GPU computes without TF32, so that thresholds fitted on the outputs suit any device.

    Args:
        forward: forward pass of the network, which is left in evaluation mode.
        batches: batches of the split, each image once over all workers.
        policy: confidence score of an exit.

    Returns:
        Outputs for every image, in the same order on every worker.
    """
    forward.model.eval()
    parts: list[Tensor] = []
    with tf32(allowed=False), batches.epoch(0) as reader:
        for images, labels in reader:
            single = forward(images).float()
            rows = []
            for logits in (single, mean_logits(single)):
                rows += [policy.confidence(logits), *exit_hits(logits, labels)]
            parts.append(torch.stack(rows))
    # (6, exits, samples): confidence, top-1 hit, top-5 hit of single exits, then of ensembles;
    # 0 exits on a worker without batches.
    own = torch.cat(parts, dim=2) if parts else torch.zeros((6, 0, 0), device=forward.device)
    rows = torch.cat([each for each in gather(own) if each.numel()], dim=2).cpu()
    assert rows.shape[2] == batches.num_samples, "every image must be evaluated exactly once"
    scores = [
        ExitOutputs(part[0].clone(), part[1].bool(), part[2].bool()) for part in rows.split(3)
    ]
    return SplitOutputs(single=scores[0], ensemble=scores[1])


def select_ensemble(
    val: SplitOutputs, costs: Sequence[float], budgets: Sequence[float]
) -> ExitEnsemble:
    """Select the ensemble if it is clearly better on validation images.

    Clearly better: the lead in correct predictions, summed over images and budgets, exceeds two
    standard errors by more than one image per budget. Thresholds are cross-fitted in two folds.

    Args:
        val: exit outputs on the validation images.
        costs: cumulative cost of every exit.
        budgets: mean costs per image to compare at, in the unit of `costs`.
    """
    num_samples = val.single.correct.shape[1]
    if num_samples < 2:
        return "none"
    lead = torch.zeros(num_samples, dtype=torch.float64)
    for scores, sign in ((val.ensemble, 1), (val.single, -1)):
        for fold in cross_fit(scores.confidences, scores.correct, costs, budgets):
            rest = fold.held_out
            for thresholds in fold.thresholds:
                exits = assign_exits(scores.confidences[:, rest], thresholds)
                right = scores.correct[:, rest].gather(0, exits[None])[0]
                lead[rest] += sign * right.double()  # integers: equal predictions cancel exactly
    error = lead.std() * num_samples**0.5
    return "mean_logits" if lead.sum() - len(budgets) > 2 * error else "none"


def anytime_accuracy(scores: ExitOutputs) -> tuple[Tensor, Tensor]:
    """Compute top-1 and top-5 of every exit in percent, each (exits,), float64."""
    top1, top5 = (100 * hits.double().mean(dim=1) for hits in (scores.correct, scores.correct_top5))
    return top1, top5
