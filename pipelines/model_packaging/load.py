"""Load trained networks by registry URI, name or folder."""

import re
import tempfile
from pathlib import Path

import torch
from mlflow.models import Model

from cluster.errors import TrackingError
from cluster.tracking import registry
from ranet.inference.classifier import BudgetedClassifier
from ranet.model.saved import SavedModel, find_model, read_model

MODEL_HELP = (
    "trained network: URI of a model in MLflow, such as models:/NAME@champion, runs:/RUN_ID of a "
    "finished run, name of a network of this package, or folder written by save_model.py"
)
"""Help text of the argument TRAINED_MODEL."""
NETWORK = Path("artifacts", "network")
"""Folder of the network within a registered model."""

_RUN = re.compile(r"runs:/+([^/]+)/?")


def load_saved(trained_model: str) -> SavedModel:
    """Load metadata and weights of a trained network.

    No code of a registered model is executed.

    Args:
        trained_model: URI, name or folder, as in `MODEL_HELP`.

    Raises:
        TrackingError: MLflow has no such model or run, or cannot be used.
        OSError: there is no such name or folder.
        ValueError: the files of the network are damaged.
    """
    if run := _RUN.fullmatch(trained_model):
        # Reading a checkpoint imports Ray, which other trained networks do not need.
        from pipelines.model_packaging.finished_run import load_run

        return load_run(run[1])
    if not _is_uri(trained_model):
        return read_model(find_model(trained_model))
    with tempfile.TemporaryDirectory() as folder:
        model = registry.download(trained_model, folder)
        if not (model / NETWORK).is_dir():
            raise TrackingError(
                f"{trained_model} contains no network folder (artifacts/network): the commit that "
                f"registered it stored another format; give runs:/{Model.load(str(model)).run_id}"
            )
        return read_model(model / NETWORK)


def load_classifier(trained_model: str) -> BudgetedClassifier:
    """Load a classifier; a registered model runs its own code.

    Args:
        trained_model: URI, name or folder, as in `MODEL_HELP`.

    Raises:
        TrackingError: MLflow has no such model or run, or cannot be used.
        OSError: there is no such name or folder.
        ValueError: the files of the network are damaged.
    """
    if _is_uri(trained_model) and not _RUN.fullmatch(trained_model):
        return registry.load(trained_model).unwrap_python_model().classifier
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return BudgetedClassifier(load_saved(trained_model), device)


def _is_uri(trained_model: str) -> bool:
    """Return whether a trained network is a URI of MLflow."""
    return re.match(r"[a-z][a-z0-9+-]*:/", trained_model) is not None
