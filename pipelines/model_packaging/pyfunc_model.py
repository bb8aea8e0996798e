"""Registered model: a RANet with thresholds for a grid of budgets.

MLflow copies this file and the package `ranet` into every logged model, and executes the file when
the model is loaded. Loading needs only torch, numpy, pandas and MLflow.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

from ranet import BudgetedClassifier, read_model


class RegisteredModel(PythonModel):
    """MLflow model that classifies images within a budget of mean mult-adds."""

    def load_context(self, context: Any) -> None:
        """Build the network and load its weights and thresholds.

        Args:
            context: Path of the artifact `network`, a folder that `read_model` reads.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.classifier = BudgetedClassifier(read_model(Path(context.artifacts["network"])), device)

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
        fraction = (params or {}).get("budget_fraction")
        try:
            images = torch.from_numpy(np.ascontiguousarray(self._pixels(model_input)))
            prediction = self.classifier.classify(images, 1.0 if fraction is None else fraction)
        except ValueError as error:  # MLflow's server answers this code with status 400
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        labels = prediction.labels.tolist()
        class_names = self.classifier.metadata.class_names
        return pd.DataFrame(
            {
                "label": labels,
                "class_name": [class_names[label] for label in labels],
                "confidence": prediction.confidences.tolist(),
                "exit": prediction.exits.tolist(),
                "mult_adds": prediction.mult_adds.tolist(),
            }
        )

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        """Return the images as uint8 after checking type, range and shape.

        Raises:
            ValueError: the images have another type, range or shape.
        """
        self.classifier.check_shape(images.shape)
        if images.dtype == object:  # the numbers of a request
            kinds = {type(value) for value in images.ravel()}
            if kinds != {int}:
                names = ", ".join(sorted(kind.__name__ for kind in kinds - {int}))
                raise ValueError(
                    f"the request contains values of type {names}; send pixels as integers from 0 "
                    "to 255, without a decimal point"
                )
            if not 0 <= images.min() <= images.max() <= 255:
                raise ValueError(
                    "pixels must be from 0 to 255, got values from "
                    f"{images.min()} to {images.max()}"
                )
            return images.astype(np.uint8)
        if images.dtype != np.uint8:
            raise ValueError(f"dtype of input {images.dtype} does not match expected dtype uint8")
        return images


set_model(RegisteredModel())
