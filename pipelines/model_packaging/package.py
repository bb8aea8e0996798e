"""Log a trained network as an MLflow model and register it."""

import json
import tempfile
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from torch import Tensor

import ranet
from cluster.tracking import registry
from pipelines.data.config import normalization
from pipelines.data.format.metadata import DatasetInfo, with_normalization
from pipelines.evaluation.budgets import Evaluation
from pipelines.run import Run

_METRIC_NAME = "mean validation top-1 over the budgets"


@dataclass(frozen=True)
class RegisteredVersion:
    """Registered version of a model."""

    name: str
    version: str
    model_id: str
    sentence: str
    """Summary for the user: whether the version is champion or candidate, and why."""


def register_model(
    run: Run,
    state_dict: dict[str, Tensor],
    evaluation: Evaluation,
    data_info: DatasetInfo,
    run_id: str,
) -> RegisteredVersion:
    """Log the model, register a version, and promote it if better.

    Registering again after an interruption creates no second version.

    Args:
        run: The run that trained the network.
        state_dict: Weights to register.
        evaluation: Accuracies and thresholds of the network.
        data_info: Images that it was trained and evaluated on.
        run_id: ID of the MLflow run.
    """
    name = run.registry.model_name
    found = registry.find_version(name, run_id)
    if found is None:
        budgets = ", ".join(f"{row.budget_fraction:.2f}" for row in evaluation.reported)
        found = registry.register(
            name,
            _log_model(run, state_dict, evaluation, data_info, run_id),
            run_id=run_id,
            metric_value=evaluation.val_top1,
            evaluation_protocol=(
                f"validation images {data_info.sha256['val'][:12]} at budgets {budgets}"
            ),
        )
    promotion = registry.promote_if_better(name, str(found.version), metric_name=_METRIC_NAME)
    model_id = str(found.source).removeprefix("models:/")
    return RegisteredVersion(name, promotion.version, model_id, promotion.sentence)


def _log_model(
    run: Run,
    state_dict: dict[str, Tensor],
    evaluation: Evaluation,
    data_info: DatasetInfo,
    run_id: str,
) -> str:
    mean, std = normalization(with_normalization(run.data, data_info))
    settings = {
        "model": asdict(run.model),
        "mean": mean,
        "std": std,
        "class_names": data_info.class_names,
        "validation_sha256": data_info.sha256["val"],
        "budget_fractions": [row.budget_fraction for row in evaluation.curve],
        "exit_ensemble": evaluation.exit_ensemble,
    }
    tensors = {
        "model": state_dict,
        "thresholds": torch.tensor([row.thresholds for row in evaluation.curve]),
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        registry.client_to("log the model") as client,
    ):
        warnings.filterwarnings("ignore", "[^A]*An input example was not provided", UserWarning)
        settings_file, tensors_file = Path(folder, "settings.json"), Path(folder, "tensors.pt")
        settings_file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
        torch.save(tensors, tensors_file)
        mlflow_run = client.get_run(run_id)
        model = client.create_logged_model(
            mlflow_run.info.experiment_id,
            "ranet",
            source_run_id=run_id,
            params=mlflow_run.data.params,
        )
        # Not mlflow.pyfunc.log_model, which would open the run and end it too early.
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_id=model.model_id,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"settings": str(settings_file), "tensors": str(tensors_file)},
            code_paths=[str(Path(ranet.__file__).parent)],
            signature=_signature(run.model.image_size),
            pip_requirements=[
                # Without the local version, such as +cu130, which package indexes do not list.
                f"{name}=={version(name).partition('+')[0]}"
                for name in ("mlflow", "numpy", "pandas", "torch")
            ],
        )
    return model.model_id


def _signature(image_size: int) -> ModelSignature:
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, 3, image_size, image_size))]),
        outputs=Schema(
            [
                ColSpec(DataType.long, "label"),
                ColSpec(DataType.string, "class_name"),
                ColSpec(DataType.double, "confidence"),
                ColSpec(DataType.long, "exit"),
                ColSpec(DataType.long, "mult_adds"),
            ]
        ),
        params=ParamSchema([ParamSpec("budget_fraction", DataType.double, default=1.0)]),
    )
