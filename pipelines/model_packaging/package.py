"""Log a trained network as an MLflow model and register it."""

import hashlib
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from torch import Tensor

import ranet
from cluster.tracking import registry
from pipelines.data.format.metadata import DatasetInfo
from pipelines.evaluation.budgets import Evaluation
from pipelines.model_packaging.card import write_network
from pipelines.model_packaging.contents import make_saved_model
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
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        registry.client_to("log the model") as client,
    ):
        warnings.filterwarnings("ignore", "[^A]*An input example was not provided", UserWarning)
        mlflow_run = client.get_run(run_id)
        network = Path(folder, "network")
        tags = mlflow_run.data.tags
        write_network(network, make_saved_model(run, state_dict, evaluation, data_info, tags))
        code, model_file = _copy_code(Path(folder))
        model = client.create_logged_model(
            mlflow_run.info.experiment_id,
            "ranet",
            source_run_id=run_id,
            params=mlflow_run.data.params,
        )
        # Not mlflow.pyfunc.log_model, which would open the run and end it too early.
        with _importable(code):
            Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                run_id=run_id,
                model_id=model.model_id,
                python_model=str(model_file),
                artifacts={"network": str(network)},
                code_paths=[str(code)],
                signature=_signature(),
                pip_requirements=[
                    # Without the local version, such as +cu130, which package indexes do not list.
                    f"{name}=={version(name).partition('+')[0]}"
                    for name in ("mlflow", "numpy", "pandas", "torch")
                ],
            )
    return model.model_id


def _copy_code(folder: Path) -> tuple[Path, Path]:
    """Copy `ranet` and the model file under their own package name.

    A process has one module per name: two versions of a model, or a version and the checkout, would
    share the code that was loaded first. The name contains a checksum of the code.

    Returns:
        The package and the model file.
    """
    source = Path(ranet.__file__).parent
    texts = {
        file.relative_to(source): file.read_text(encoding="utf-8")
        for file in sorted(source.rglob("*.py"))
    }
    checksum = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()
    name = f"ranet_{checksum[:12]}"
    model_file = Path(__file__).with_name("pyfunc_model.py")
    copies = {folder / name / path: text for path, text in texts.items()}
    copies[folder / model_file.name] = model_file.read_text(encoding="utf-8")
    for path, text in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        renamed = re.sub(
            r"^(\s*(?:from|import) )ranet\b", rf"\g<1>{name}", text, flags=re.MULTILINE
        )
        path.write_text(renamed, encoding="utf-8")
    return folder / name, folder / model_file.name


@contextmanager
def _importable(package: Path) -> Iterator[None]:
    """Make a package importable while MLflow checks the model file."""
    sys.path.insert(0, str(package.parent))
    try:
        yield
    finally:
        sys.path.remove(str(package.parent))
        for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
            if Path(sys.modules[name].__file__ or "").is_relative_to(package):
                del sys.modules[name]


def _signature() -> ModelSignature:
    return ModelSignature(
        # The model itself checks its images: for a tensor of uint8, MLflow's server would turn the
        # floats of a request into integers, and images from 0 to 1 into black ones.
        inputs=Schema([TensorSpec(np.dtype(object), (-1,))]),
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
