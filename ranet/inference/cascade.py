"""Cascade of exits: images leave the batch at the first confident exit."""

from collections.abc import Generator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ranet.architecture import make_network_spec
from ranet.config import ExitEnsemble, ModelConfig
from ranet.inference.policies import TOP_PROBABILITY, ExitPolicy
from ranet.model.network import CPU_CHUNK_IMAGES, FusedRANet, RANet


@dataclass(frozen=True)
class Prediction:
    """Predictions for a batch; each field is (batch,)."""

    labels: Tensor
    """Predicted class, int64."""
    confidences: Tensor
    """Confidence of the exit in the predicted class, float32."""
    exits: Tensor
    """Exit that made the prediction, counted from 1, int64."""
    mult_adds: Tensor
    """Mult-adds of the blocks and exits that ran for the image, int64."""


@dataclass(frozen=True)
class PartialPrediction:
    """Predictions for a batch after some of the exits."""

    prediction: Prediction
    """Prediction for every image by the last exit that the image reached."""
    is_final: Tensor
    """True for images that have left the cascade (batch,), bool."""


class Cascade:
    """Classifier that uses the first confident exit for each image.

    An image leaves at the first exit whose confidence by the exit policy is at least the
    threshold of that exit; all remaining images leave at the last exit. An exit with a
    threshold above 1 takes no image: it is neither computed nor counted in the mult-adds, unless
    its logits are part of an ensemble of exits.
    """

    def __init__(
        self,
        model: RANet | FusedRANet,
        thresholds: Tensor,
        ensemble: ExitEnsemble = "none",
        policy: ExitPolicy = TOP_PROBABILITY,
    ) -> None:
        """Create a cascade from a network and its thresholds.

        Args:
            model: a network; a `RANet` is converted to its inference form.
            thresholds: minimum confidence to leave at each exit (exits,); may be infinite.
            ensemble: ensemble of exits to predict with, as in fitting the thresholds.
            policy: confidence score of an exit, as in fitting the thresholds.

        Raises:
            ValueError: `thresholds` does not have one number per exit.
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
        self.ensemble = ensemble
        self.policy = policy
        self.exits = [
            k
            for k in range(1, num_exits + 1)
            if self.thresholds[k - 1] <= 1 or ensemble == "mean_logits"
        ]
        self.skipped = frozenset(range(1, num_exits + 1)) - frozenset(self.exits)
        self.mult_adds = _path_mult_adds(model.config, self.skipped)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Prediction:
        """Classify images (batch, 3, height, width), normalised.

        Raises:
            ValueError: the images do not have this shape.
        """
        # On a CPU the features of a large batch do not fit into the cache between layers.
        chunks = images.split(CPU_CHUNK_IMAGES) if images.device.type == "cpu" else (images,)
        predictions = []
        for chunk in chunks:
            prediction = self._empty_prediction(chunk)
            for step in self._steps(chunk):
                if len(step.stay) < len(step.images):
                    self._write(prediction, step)
            predictions.append(prediction)
        if len(predictions) == 1:
            return predictions[0]
        return Prediction(
            *(
                torch.cat([getattr(prediction, field.name) for prediction in predictions])
                for field in fields(Prediction)
            )
        )

    def stream(self, images: Tensor) -> Generator[PartialPrediction]:
        """Classify images (batch, 3, height, width), normalised; yield after every exit.

        A caller with a time limit stops reading at any exit and uses the last predictions. All
        images pass through each exit as one batch, whatever its size.

        Raises:
            ValueError: the images do not have this shape.
        """
        return self._stream(images, self._empty_prediction(images))

    @torch.inference_mode()
    def _stream(self, images: Tensor, prediction: Prediction) -> Generator[PartialPrediction]:
        is_final = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        for step in self._steps(images):
            self._write(prediction, step)
            is_final[step.images] = True
            is_final[step.images[step.stay]] = False
            copies = (getattr(prediction, field.name).clone() for field in fields(Prediction))
            yield PartialPrediction(Prediction(*copies), is_final.clone())

    def _empty_prediction(self, images: Tensor) -> Prediction:
        """Create a prediction for the images with zeros in all fields."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images must have the shape (batch, 3, height, width), got {tuple(images.shape)}"
            )
        types = (torch.int64, torch.float32, torch.int64, torch.int64)
        return Prediction(
            *(torch.zeros(len(images), dtype=dtype, device=images.device) for dtype in types)
        )

    def _write(self, prediction: Prediction, step: "_ExitStep") -> None:
        """Write the predictions of an exit for its images."""
        prediction.labels[step.images] = step.labels
        prediction.confidences[step.images] = step.confidences
        prediction.exits[step.images] = step.exit
        prediction.mult_adds[step.images] = self.mult_adds[step.exit - 1]

    def _steps(self, images: Tensor) -> Generator["_ExitStep"]:
        """Run one exit after another until all images have left."""
        if not len(images):
            return
        predictions = self.model.predictions(images, self.skipped)
        remaining = torch.arange(len(images), device=images.device)
        keep = None
        logits_sum: Tensor | None = None  # sum of the logits of all earlier exits
        for number in self.exits:
            logits = predictions.send(keep).float()
            if self.ensemble == "mean_logits":
                if logits_sum is not None:
                    logits = logits + (logits_sum if keep is None else logits_sum[keep])
                logits_sum, logits = logits, logits / number
            confidences = self.policy.confidence(logits[None])[0]
            labels = logits.softmax(dim=1).argmax(dim=1)
            # Negated >= instead of <, so that images with a NaN confidence stay.
            stays = ~(confidences >= self.thresholds[number - 1])
            # All remaining images leave at the last exit, also those with a NaN confidence.
            stay = stays.nonzero().flatten() if number < len(self.thresholds) else remaining[:0]
            yield _ExitStep(number, remaining, labels, confidences, stay)
            if not len(stay):
                break
            keep = None
            if len(stay) < len(remaining):
                remaining, keep = remaining[stay], stay
        predictions.close()


@dataclass(frozen=True)
class _ExitStep:
    """Predictions of one exit, and the images that stay."""

    exit: int
    """Counted from 1."""
    images: Tensor
    """Indices in the batch of the images that reached the exit (images,)."""
    labels: Tensor
    """Predicted classes of these images (images,)."""
    confidences: Tensor
    """Confidences of these images (images,)."""
    stay: Tensor
    """Indices, within `images`, of the images that continue to the next exit."""


def _path_mult_adds(config: ModelConfig, skipped: frozenset[int]) -> list[int]:
    """Mult-adds from the image to each exit, without the skipped exits."""
    spec = make_network_spec(config)
    spent = sum(step.cost.mult_adds for step in spec.stem)
    path: list[int] = []
    for block in spec.blocks:
        spent += block.cost.mult_adds
        if block.exit:
            if len(path) + 1 not in skipped:
                spent += block.exit.cost.mult_adds
            path.append(spent)
    return path
