"""Early exit for real: finished images leave the batch, the rest goes on."""

from collections.abc import Generator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ranet.architecture import make_network_spec
from ranet.config import ModelConfig
from ranet.inference.ensemble import ExitEnsemble
from ranet.model.network import CPU_PART, FusedRANet, RANet


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
class PartialPrediction:
    """Answers while a batch is on its way through the exits."""

    prediction: Prediction
    """Best answer so far for every image: that of the last exit it reached."""
    is_final: Tensor
    """Whether the image has left: (batch,), bool."""


class Cascade:
    """Classifies a batch, each image by the first exit that is confident enough.

    An image leaves at the first exit whose confidence, the highest softmax probability, is at
    least that exit's threshold; the last exit takes all that are left. An exit that no image can
    take, because its threshold is above 1, is neither computed nor charged, unless exits answer
    together.
    """

    def __init__(
        self, model: RANet | FusedRANet, thresholds: Tensor, answer: ExitEnsemble = "alone"
    ) -> None:
        """Set the thresholds (exits,); they may be plus or minus infinity.

        Args:
            model: a network; of a `RANet` the inference form is made here, once.
            thresholds: confidence from which an image leaves, for each exit.
            answer: whether an exit answers alone, or together with all before it; the
                thresholds are those of this way.

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
        self.answer = answer
        self.exits = [
            k
            for k in range(1, num_exits + 1)
            if self.thresholds[k - 1] <= 1 or answer == "together"
        ]
        self.skipped = frozenset(range(1, num_exits + 1)) - frozenset(self.exits)
        self.mult_adds = _path_mult_adds(model.config, self.skipped)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Prediction:
        """Classify images (batch, 3, height, width), normalised.

        Raises:
            ValueError: the images have another shape.
        """
        # On a CPU the features of a large batch would fall out of the cache between layers.
        parts = images.split(CPU_PART) if images.device.type == "cpu" else (images,)
        answers = []
        for part in parts:
            answer = self._unanswered(part)
            for step in self._steps(part):
                if len(step.stay) < len(step.images):
                    self._put(answer, step)
            answers.append(answer)
        if len(answers) == 1:
            return answers[0]
        return Prediction(
            *(
                torch.cat([getattr(answer, field.name) for answer in answers])
                for field in fields(Prediction)
            )
        )

    def stream(self, images: Tensor) -> Generator[PartialPrediction]:
        """Classify images (batch, 3, height, width), normalised; give all answers at every exit.

        To stop by the clock is to stop reading: the last answers given are the best so far. All
        images go through an exit together, however many there are.

        Raises:
            ValueError: the images have another shape.
        """
        return self._stream(images, self._unanswered(images))

    @torch.inference_mode()
    def _stream(self, images: Tensor, answer: Prediction) -> Generator[PartialPrediction]:
        is_final = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        for step in self._steps(images):
            self._put(answer, step)
            is_final[step.images] = True
            is_final[step.images[step.stay]] = False
            copies = (getattr(answer, field.name).clone() for field in fields(Prediction))
            yield PartialPrediction(Prediction(*copies), is_final.clone())

    def _unanswered(self, images: Tensor) -> Prediction:
        """Make room for the answers to images; those that stay without one read 0."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images must have the shape (batch, 3, height, width), got {tuple(images.shape)}"
            )
        types = (torch.int64, torch.float32, torch.int64, torch.int64)
        return Prediction(
            *(torch.zeros(len(images), dtype=dtype, device=images.device) for dtype in types)
        )

    def _put(self, answer: Prediction, step: "_Step") -> None:
        """Write the answers that an exit has for the images that reached it."""
        answer.labels[step.images] = step.labels
        answer.confidences[step.images] = step.confidences
        answer.exits[step.images] = step.exit
        answer.mult_adds[step.images] = self.mult_adds[step.exit - 1]

    def _steps(self, images: Tensor) -> Generator["_Step"]:
        """Run exit by exit until all images have left."""
        if not len(images):
            return
        predictions = self.model.predictions(images, self.skipped)
        waiting = torch.arange(len(images), device=images.device)
        keep = None
        passed: Tensor | None = None  # sum of the logits of the exits so far
        for number in self.exits:
            logits = predictions.send(keep).float()
            if self.answer == "together":
                if passed is not None:
                    logits = logits + (passed if keep is None else passed[keep])
                passed, logits = logits, logits / number
            confidences, labels = logits.softmax(dim=1).max(dim=1)
            # Not >=: an image whose confidence is not a number stays.
            stays = ~(confidences >= self.thresholds[number - 1])
            # The last exit takes what is left, numbers or not.
            stay = stays.nonzero().flatten() if number < len(self.thresholds) else waiting[:0]
            yield _Step(number, waiting, labels, confidences, stay)
            if not len(stay):
                break
            keep = None
            if len(stay) < len(waiting):
                waiting, keep = waiting[stay], stay
        predictions.close()


@dataclass(frozen=True)
class _Step:
    """What happened at one exit."""

    exit: int
    """Counted from 1."""
    images: Tensor
    """Those that reached it, by their places in the batch; the following belong to these."""
    labels: Tensor
    confidences: Tensor
    stay: Tensor
    """Places, among these, of the images that go on."""


def _path_mult_adds(config: ModelConfig, skipped: frozenset[int]) -> list[int]:
    """Mult-adds from the image to each exit without the exits that are skipped."""
    plan = make_network_spec(config)
    spent = sum(step.cost.mult_adds for step in plan.stem)
    path: list[int] = []
    for block in plan.blocks:
        spent += block.cost.mult_adds
        if block.exit:
            if len(path) + 1 not in skipped:
                spent += block.exit.cost.mult_adds
            path.append(spent)
    return path
