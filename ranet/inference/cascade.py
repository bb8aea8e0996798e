"""Early exit for real: finished images leave the batch, the rest goes on."""

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from ranet.config import ModelConfig
from ranet.model.network import OptimizedRANet, RANet
from ranet.plan import make_plan

CPU_BATCH = 64
"""Images that a CPU takes through the network at a time."""


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


@dataclass(frozen=True)
class Progress:
    """Answers while a batch is on its way through the exits."""

    prediction: Prediction
    """Best answer so far for every image: that of the last exit it reached."""
    is_final: Tensor
    """Whether the image has left: (batch,), bool."""


class Cascade:
    """Classifies a batch, each image by the first exit that is confident enough.

    An image leaves at the first exit whose confidence, the highest softmax probability, is at
    least that exit's threshold; the last exit takes all that are left. An exit that no image can
    take, because its threshold is above 1, is neither computed nor charged.
    """

    def __init__(self, model: RANet | OptimizedRANet, thresholds: Tensor) -> None:
        """Set the thresholds (exits,); they may be plus or minus infinity.

        Args:
            model: a network; of a `RANet` the inference form is made here, once.
            thresholds: confidence from which an image leaves, for each exit.

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
        self.model = model.optimized() if isinstance(model, RANet) else model
        self.thresholds = [*thresholds.tolist()[:-1], float("-inf")]
        self.exits = [k for k in range(1, num_exits + 1) if self.thresholds[k - 1] <= 1]
        self.skipped = frozenset(range(1, num_exits + 1)) - frozenset(self.exits)
        self.mult_adds = _path_mult_adds(model.config, self.skipped)

    def __call__(self, images: Tensor) -> Prediction:
        """Classify images (batch, 3, height, width), normalised.

        Raises:
            ValueError: the images have another shape.
        """
        # On a CPU the features of a large batch would fall out of the cache between layers.
        parts = images.split(CPU_BATCH) if images.device.type == "cpu" else (images,)
        answers = []
        for part in parts:
            *_, last = self.stream(part)
            answers.append(last.prediction)
        return Prediction(
            labels=torch.cat([answer.labels for answer in answers]),
            confidences=torch.cat([answer.confidences for answer in answers]),
            exits=torch.cat([answer.exits for answer in answers]),
            mult_adds=torch.cat([answer.mult_adds for answer in answers]),
        )

    @torch.inference_mode()
    def stream(self, images: Tensor) -> Generator[Progress]:
        """Classify images (batch, 3, height, width), normalised; give all answers at every exit.

        To stop by the clock is to stop reading: the last answers given are the best so far.

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
        waiting = torch.arange(batch, device=device)
        mult_adds = torch.tensor([0, *self.mult_adds], device=device)
        predictions = self.model.predictions(images, self.skipped)
        keep = None
        for number in self.exits:
            if batch:
                logits = predictions.send(keep)
                confidence, label = logits.float().softmax(dim=1).max(dim=1)
                confidences[waiting], labels[waiting], exits[waiting] = confidence, label, number
                stays = (confidence < self.thresholds[number - 1]) | confidence.isnan()
                if number == self.exits[-1]:
                    stays[:] = False
                keep = stays.nonzero().flatten()
                waiting = waiting[keep]
                keep = None if len(keep) == len(stays) else keep
            is_final = torch.ones(batch, dtype=torch.bool, device=device)
            is_final[waiting] = False
            yield Progress(
                Prediction(labels.clone(), confidences.clone(), exits.clone(), mult_adds[exits]),
                is_final,
            )
            if not len(waiting):
                break
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
