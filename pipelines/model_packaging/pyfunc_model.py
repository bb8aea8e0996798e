"""The model as MLflow keeps it: a RANet with its threshold sets, answering within a budget.

MLflow copies this file and the package `ranet` into every model it logs, and runs the file where
the model is loaded. There it needs torch, numpy, pandas and MLflow: neither Ray, nor FFCV, nor
the rest of this project.
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
from ranet.model.preprocessing import Normalize

_CHUNK_IMAGES = 256
"""Images classified at a time, so that memory does not grow with the batch of the caller."""


class BudgetedClassifier(PythonModel):
    """Classifies images with no more mult-adds an image, on average, than a budget allows."""

    def load_context(self, context: Any) -> None:
        """Build the network and read its weights and threshold sets.

        Args:
            context: paths of the artifacts `settings` (JSON) and `tensors` (torch file).
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
        self.smallest_budget = costs[0] / costs[-1]

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]: the base has no type
        self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Classify images (batch, 3, height, width), uint8; one row per image, in their order.

        Args:
            context: unused; MLflow's signature.
            model_input: the images.
            params: `budget`, a share of the last exit's mult-adds; 1 where it is not given.

        Raises:
            MlflowException: the budget is below the first exit's share, or above 1.
        """
        budget = (params or {}).get("budget")
        thresholds = self._thresholds_within(1.0 if budget is None else budget)
        cascade = Cascade(self.model, thresholds, self.settings["exit_ensemble"])
        images = torch.from_numpy(np.ascontiguousarray(model_input))
        parts = [
            cascade(self.normalize(chunk.to(self.device))) for chunk in images.split(_CHUNK_IMAGES)
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

    def _thresholds_within(self, budget: float) -> torch.Tensor:
        """The thresholds of the largest budget not above this one."""
        if not self.smallest_budget <= budget <= 1:
            # Rounded up, so that the number in the message is itself accepted.
            smallest = math.ceil(self.smallest_budget * 1e4) / 1e4
            raise MlflowException(
                f"budget must be from {smallest} (every image leaves at the first exit) to 1 "
                f"(the mult-adds of the last exit), got {budget}",
                error_code=INVALID_PARAMETER_VALUE,
            )
        return self.thresholds[bisect_right(self.settings["budgets"], budget) - 1]


set_model(BudgetedClassifier())
