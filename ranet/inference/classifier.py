"""Classifier of uint8 images within a budget, from a saved model."""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from ranet.inference.cascade import Cascade, Prediction
from ranet.inference.precision import tf32
from ranet.model.network import RANet
from ranet.model.preprocessing import Normalize
from ranet.model.saved import SavedModel

_CHUNK_IMAGES = 256
"""Images per forward pass, so that memory does not grow with the size of the request."""


class BudgetedClassifier:
    """Trained network that classifies images within a budget of mean mult-adds.

    Args:
        saved: trained network.
        device: device of the computation.
    """

    def __init__(self, saved: SavedModel, device: torch.device | str = "cpu") -> None:
        self.metadata = saved.metadata
        self.device = torch.device(device)
        preprocessing = saved.metadata.preprocessing
        self.normalize = Normalize(preprocessing.mean, preprocessing.std).to(self.device)
        self.network = RANet.from_saved(saved).to(self.device).optimized()

    def classify(self, images: Tensor, budget_fraction: float = 1.0) -> Prediction:
        """Classify images (batch, 3, height, width), uint8.

        Args:
            images: images of `metadata.preprocessing.image_size`, on any device.
            budget_fraction: mean mult-adds per image, as a fraction of the last exit's mult-adds;
                the thresholds kept it on the validation images.

        Returns:
            Predictions on the CPU, in the order of the images.

        Raises:
            ValueError: the budget is impossible, or the images have another shape or type.
        """
        self.check_shape(images.shape)
        if images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8, got {images.dtype}")
        thresholds = torch.tensor(self.metadata.thresholds(budget_fraction))
        cascade = Cascade(self.network, thresholds, self.metadata.exit_ensemble)
        with tf32(allowed=False):  # the thresholds were fitted without it
            parts = [
                cascade(self.normalize(chunk.to(self.device)))
                for chunk in images.split(_CHUNK_IMAGES)
            ]
        return Prediction(
            *(
                torch.cat([getattr(part, field.name) for part in parts]).cpu()
                for field in fields(Prediction)
            )
        )

    def check_shape(self, shape: Sequence[int]) -> None:
        """Check that a shape is (batch, 3, height, width).

        Raises:
            ValueError: the shape differs.
        """
        size = self.metadata.preprocessing.image_size
        shape = tuple(shape)
        if shape and not shape[0]:
            raise ValueError("the request contains no images; send at least one")
        if len(shape) != 4 or shape[1:] != (3, size, size):
            hint = "; add the batch axis" if shape == (3, size, size) else ""
            raise ValueError(
                f"Shape of input {shape} does not match expected shape (-1, 3, {size}, {size})"
                f"{hint}"
            )
