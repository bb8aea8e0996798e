"""Registered model: a RANet with thresholds for a grid of budgets.

MLflow copies this file and the package `ranet` into every logged model, and executes the file when
the model is loaded. Loading needs only torch, numpy, pandas and MLflow.
"""

import json
import math
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

from ranet import Cascade, ModelConfig, RANet, mult_adds
from ranet.inference.precision import tf32
from ranet.model.preprocessing import Normalize

_CHUNK_IMAGES = 256
"""Images per forward pass, so that memory does not grow with the size of the request."""


class BudgetedClassifier(PythonModel):
    """MLflow model that classifies images within a budget of mean mult-adds."""

    def load_context(self, context: Any) -> None:
        """Build the network and load its weights and thresholds.

        Args:
            context: Paths of the artifacts `settings` (JSON) and `tensors` (torch file).
        """
        self.settings: dict[str, Any] = json.loads(
            Path(context.artifacts["settings"]).read_text(encoding="utf-8")
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tensors = torch.load(
            context.artifacts["tensors"], map_location=self.device, weights_only=True
        )
        config = ModelConfig(**self.settings["model"])
        self.thresholds = tensors["thresholds"]
        self.weights = tensors["model"]
        model = RANet(config).to(self.device)
        model.load_state_dict(self.weights)
        self.model = model.optimized()
        self.normalize = Normalize(tuple(self.settings["mean"]), tuple(self.settings["std"])).to(
            self.device
        )
        costs = mult_adds(config)
        self.min_budget_fraction = costs[0] / costs[-1]

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]: the base has no type
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify images (batch, 3, height, width), uint8.

        Args:
            context: Unused; part of MLflow's interface.
            model_input: Images; from MLflow's server, an array of Python numbers.
            params: `budget_fraction`: mean mult-adds per image as a fraction of the last exit's
                mult-adds; default 1.

        Returns:
            Table with one row per image, in the order of the images.

        Raises:
            MlflowException: The budget fraction is below the first exit's, or above 1, or the
                images have another type, range or shape.
        """
        pixels = self._pixels(model_input)
        fraction = (params or {}).get("budget_fraction")
        thresholds = self._thresholds_within(1.0 if fraction is None else fraction)
        cascade = Cascade(self.model, thresholds, self.settings["exit_ensemble"])
        images = torch.from_numpy(np.ascontiguousarray(pixels))
        with tf32(allowed=False):  # the thresholds were fitted without it
            parts = [
                cascade(self.normalize(chunk.to(self.device)))
                for chunk in images.split(_CHUNK_IMAGES)
            ]
        labels = [label for part in parts for label in part.labels.tolist()]
        return pd.DataFrame(
            {
                "label": labels,
                "class_name": [self.settings["class_names"][label] for label in labels],
                "confidence": [value for part in parts for value in part.confidences.tolist()],
                "exit": [value for part in parts for value in part.exits.tolist()],
                "mult_adds": [value for part in parts for value in part.mult_adds.tolist()],
            }
        )

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        """Return the images as uint8 after checking type, range and shape."""
        size = self.settings["model"]["image_size"]
        if images.ndim and not len(images):
            raise _invalid("the request contains no images; send at least one")
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            hint = "; add the batch axis" if images.shape == (3, size, size) else ""
            raise _invalid(
                f"Shape of input {images.shape} does not match expected shape "
                f"(-1, 3, {size}, {size}){hint}"
            )
        if images.dtype == object:  # the numbers of a request
            kinds = {type(value) for value in images.ravel()}
            if kinds != {int}:
                names = ", ".join(sorted(kind.__name__ for kind in kinds - {int}))
                raise _invalid(
                    f"the request contains values of type {names}; send pixels as integers from 0 "
                    "to 255, without a decimal point"
                )
            if not 0 <= images.min() <= images.max() <= 255:
                raise _invalid(
                    "pixels must be from 0 to 255, got values from "
                    f"{images.min()} to {images.max()}"
                )
            return images.astype(np.uint8)
        if images.dtype != np.uint8:
            raise _invalid(f"dtype of input {images.dtype} does not match expected dtype uint8")
        return images

    def _thresholds_within(self, fraction: float) -> torch.Tensor:
        """Return the thresholds of the largest stored budget fraction within the request."""
        if not self.min_budget_fraction <= fraction <= 1:
            # Rounded up, so that the number in the message is accepted.
            smallest = math.ceil(self.min_budget_fraction * 1e4) / 1e4
            raise _invalid(
                f"budget_fraction must be from {smallest} (every image leaves at the first exit) "
                f"to 1 (the mult-adds of the last exit), got {fraction}"
            )
        return self.thresholds[bisect_right(self.settings["budget_fractions"], fraction) - 1]


def _invalid(message: str) -> MlflowException:
    """Return an exception that MLflow's server answers with status 400."""
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


set_model(BudgetedClassifier())
