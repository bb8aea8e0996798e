"""Early exit for real: finished images leave the batch, the rest goes on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ranet.config import ModelConfig
from ranet.model.network import OptimizedRANet, RANet
from ranet.plan import make_plan


@dataclass(frozen=True)
class Prediction:
    """Answers for a batch, in the order of its images; each field is (batch,)."""

    labels: Tensor
    """Most probable class, int64."""
    confidences: Tensor
    """Its probability, float32."""
    exits: Tensor
    """Exit that answered, counted from 1, int64."""
    mult_adds: Tensor
    """Mult-adds of the blocks and exits that ran for the image, int64."""


class Cascade:
    """Classifies a batch, each image by the first exit that is confident enough.

    An image leaves at the first exit whose confidence, the highest softmax probability, is at
    least that exit's threshold; the last exit takes all that are left. An exit that no image can
    take, because its threshold is above 1, is not computed and not charged.
    """

    def __init__(self, model: RANet | OptimizedRANet, thresholds: Tensor) -> None:
        """Set the thresholds (exits,); they may be plus or minus infinity.

        Raises:
            ValueError: the thresholds are not one number per exit.
        """
        num_exits = model.config.num_exits
        thresholds = torch.as_tensor(thresholds, dtype=torch.float32).flatten()
        if thresholds.shape != (num_exits,) or thresholds.isnan().any():
            raise ValueError(
                f"thresholds must be one number for each of the {num_exits} exits, "
                f"got {thresholds.tolist()}"
            )
        self.model = model
        self.thresholds = [*thresholds.tolist()[:-1], float("-inf")]
        self.exits = [k for k in range(1, num_exits + 1) if self.thresholds[k - 1] <= 1]
        self.skipped = frozenset(range(1, num_exits + 1)) - frozenset(self.exits)
        self.mult_adds = _path_mult_adds(model.config, self.skipped)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Prediction:
        """Classify images (batch, 3, height, width), normalised.

        Raises:
            ValueError: the images have another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images must have the shape (batch, 3, height, width), got {tuple(images.shape)}"
            )
        batch, device = len(images), images.device
        labels = torch.zeros(batch, dtype=torch.int64, device=device)
        confidences = torch.zeros(batch, dtype=torch.float32, device=device)
        exits = torch.zeros(batch, dtype=torch.int64, device=device)
        if batch:
            was_training = self.model.training
            self.model.eval()
            self._run(images, labels, confidences, exits)
            self.model.train(was_training)
        mult_adds = torch.tensor([0, *self.mult_adds], device=device)[exits]
        return Prediction(labels, confidences, exits, mult_adds)

    def _run(self, images: Tensor, labels: Tensor, confidences: Tensor, exits: Tensor) -> None:
        """Fill in the answers."""
        waiting = torch.arange(len(images), device=images.device)
        images = images.contiguous(memory_format=torch.channels_last)
        predictions = self.model.predictions(images, self.skipped)
        logits = next(predictions)
        for number in self.exits:
            confidence, label = logits.float().softmax(dim=1).max(dim=1)
            leaves = confidence >= self.thresholds[number - 1]
            if number == self.exits[-1]:
                leaves = torch.ones_like(leaves)  # a confidence that is not a number stays, too
            gone = waiting[leaves]
            labels[gone], confidences[gone], exits[gone] = label[leaves], confidence[leaves], number
            keep = (~leaves).nonzero().flatten()
            if not len(keep):
                break
            waiting = waiting[keep]
            logits = predictions.send(keep if len(keep) < len(leaves) else None)
        predictions.close()


def _path_mult_adds(config: ModelConfig, skipped: frozenset[int]) -> list[int]:
    """Mult-adds from the image to each exit without the exits that are skipped."""
    plan = make_plan(config)
    spent = sum(step.cost.mult_adds for step in plan.stem)
    path: list[int] = []
    for block in plan.blocks:
        spent += block.cost.mult_adds
        if block.exit:
            if len(path) + 1 not in skipped:
                spent += block.exit.cost.mult_adds
            path.append(spent)
    return path
