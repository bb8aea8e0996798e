"""What a trained network is worth: accuracy against mult-adds, and the model that is registered."""

import json
import math
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.entities import Metric
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS
from PIL import Image
from torch import Tensor

import ranet
from cluster.config import in_submitted_job
from cluster.tracking import registry
from pipelines.data.format.metadata import DatasetInfo
from pipelines.data.loading.loader import open_batches
from pipelines.run import Run
from ranet.evaluation.exit_outputs import (
    ExitOutputs,
    SplitOutputs,
    anytime_accuracy,
    select_ensemble,
)
from ranet.inference.ensemble import ExitEnsemble
from ranet.inference.threshold_search import fit_budgets, score_budget

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEWEST_THRESHOLD_SETS = 40
_LEAST_POINTS_SHOWN = 3.0
_SCORE_NAME = "mean validation top-1 over the budgets"


@dataclass(frozen=True)
class ExitAccuracy:
    """Anytime prediction: every image answered by one exit. Accuracies in percent."""

    mult_adds: int
    val_top1: float
    val_top5: float
    test_top1: float
    test_top5: float


@dataclass(frozen=True)
class BudgetAccuracy:
    """Budgeted batch classification: thresholds of one budget. Accuracies in percent."""

    budget: float
    """Share of the last exit's mult-adds that an image may cost on average."""
    thresholds: tuple[float, ...]
    """Fitted on the validation images."""
    val_top1: float
    test_top1: float
    test_mult_adds: float
    """Mean over the test images."""
    exit_shares: tuple[float, ...]
    """Test images that leave at each exit, in percent."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of every exit, and of every budget whose thresholds go with the model."""

    exits: tuple[ExitAccuracy, ...]
    curve: tuple[BudgetAccuracy, ...]
    """Every threshold set, smallest budget first."""
    reported: tuple[BudgetAccuracy, ...]
    """Those of the budgets that were asked for."""
    answer: ExitEnsemble
    """Whether exits answer alone or together; chosen on the validation images."""

    @property
    def val_top1(self) -> float:
        """Validation top-1 in percent, mean over the reported budgets."""
        return sum(row.val_top1 for row in self.reported) / len(self.reported)


def check_budgets(costs: tuple[int, ...], budgets: tuple[float, ...]) -> None:
    """Refuse budgets that not even the first exit keeps.

    Args:
        costs: cumulative mult-adds of every exit.
        budgets: shares of the last exit's mult-adds.
    """
    smallest = math.ceil(100 * costs[0] / costs[-1]) / 100
    if min(budgets) < smallest:
        raise ValueError(
            f"evaluation.budget_fractions must be {smallest} or more, got {budgets}: the first exit of this "
            f"network costs {costs[0]:,} of {costs[-1]:,} mult-adds"
        )


def check_classes(run: Run, info: DatasetInfo) -> None:
    """Refuse a network that tells apart another number of classes than the images have."""
    if len(info.class_names) != run.model.num_classes:
        raise ValueError(
            f"model.num_classes must be {len(info.class_names)}, the classes of data.source "
            f"{run.data.source}, got {run.model.num_classes}"
        )


def budget_grid(costs: tuple[int, ...]) -> tuple[float, ...]:
    """Budgets whose thresholds go with a model: the first exit's share, then even steps up to 1.

    The step is 0.01, or the largest smaller power of ten that gives 40 budgets. A network with a
    single exit has the single budget 1.
    """
    first = costs[0] / costs[-1]
    if first == 1:
        return (1.0,)
    steps = 100
    while steps * (1 - first) < _FEWEST_THRESHOLD_SETS:
        steps *= 10
    return (first, *(k / steps for k in range(1, steps + 1) if k / steps > first))


def evaluate_outputs(
    costs: tuple[int, ...], val: SplitOutputs, test: SplitOutputs, budgets: tuple[float, ...]
) -> Evaluation:
    """Fit thresholds on the validation images and score them, and every exit, on the test images.

    Args:
        costs: cumulative mult-adds of every exit.
        val: the network's answers to the validation images.
        test: its answers to the test images.
        budgets: shares of the last exit's mult-adds to report, in steps of 0.01.
    """
    check_budgets(costs, budgets)
    grid = budget_grid(costs)
    wanted = {round(budget, 2) for budget in budgets}
    # In mult-adds; never below the first exit by a rounding of its share.
    allowed = {budget: max(costs[0], budget * costs[-1]) for budget in grid}
    answer = select_ensemble(val, costs, [allowed[budget] for budget in grid if budget in wanted])
    on_val, on_test = val.by(answer), test.by(answer)
    thresholds = fit_budgets(on_val.confidences, on_val.correct, costs, list(allowed.values()))
    curve = tuple(
        _score_budget(budget, row, costs, on_val, on_test)
        for budget, row in zip(grid, thresholds, strict=True)
    )
    accuracies = torch.stack((*anytime_accuracy(on_val), *anytime_accuracy(on_test)), dim=1)
    exits = tuple(
        ExitAccuracy(cost, *row) for cost, row in zip(costs, accuracies.tolist(), strict=True)
    )
    reported = tuple(row for row in curve if row.budget in wanted)
    return Evaluation(exits=exits, curve=curve, reported=reported, answer=answer)


def _score_budget(
    budget: float, thresholds: Tensor, costs: tuple[int, ...], val: ExitOutputs, test: ExitOutputs
) -> BudgetAccuracy:
    on_val, on_test = (
        score_budget(scores.confidences, scores.correct, costs, thresholds)
        for scores in (val, test)
    )
    return BudgetAccuracy(
        budget=budget,
        thresholds=tuple(thresholds.tolist()),
        val_top1=on_val.top1,
        test_top1=on_test.top1,
        test_mult_adds=on_test.mean_cost,
        exit_shares=tuple(100 * share for share in on_test.shares),
    )


def format_tables(evaluation: Evaluation) -> str:
    """Two tables for people: accuracy on the test images by exit, and by budget."""
    lines = ["exit   mult-adds   top-1 %   top-5 %"]
    lines += [
        f"{number:4d}  {row.mult_adds / 1e6:8.2f} M  {row.test_top1:8.2f}  {row.test_top5:8.2f}"
        for number, row in enumerate(evaluation.exits, start=1)
    ]
    lines += ["", "budget   mult-adds   top-1 %   % of the images leaving at exit 1, 2, ..."]
    lines += [
        f"{row.budget:6.2f}  {row.test_mult_adds / 1e6:8.2f} M  {row.test_top1:8.2f}   "
        + " ".join(f"{share:5.1f}" for share in row.exit_shares)
        for row in evaluation.reported
    ]
    if evaluation.answer == "together":
        lines += [
            "",
            "every answer is the mean of all exits passed: better on the validation images",
        ]
    return "\n".join(lines)


def plot_curve(evaluation: Evaluation, title: str) -> "Figure":
    """Draw test top-1 against mult-adds: each exit on its own, and every budget."""
    from matplotlib.figure import Figure  # half a second that a run's start can do without

    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.subplots()
    costs = [row.mult_adds / 1e6 for row in evaluation.exits]
    top1 = [row.test_top1 for row in evaluation.exits]
    # A larger budget may cost the test images less: they are not those of the fit.
    points = sorted((row.test_mult_adds / 1e6, row.test_top1) for row in evaluation.curve)
    axes.plot(
        *zip(*points, strict=True),
        color="tab:blue",
        marker=".",
        label="budgeted batch: each image leaves when the network is sure",
    )
    axes.plot(
        costs,
        top1,
        color="tab:orange",
        linestyle="--",
        marker="o",
        markersize=11,
        label="anytime: every image leaves at the numbered exit",
    )
    for number, (cost, accuracy) in enumerate(zip(costs, top1, strict=True), start=1):
        axes.annotate(
            str(number), (cost, accuracy), ha="center", va="center", color="white", fontsize=8
        )
    for k in sorted({0, len(costs) - 1}):
        axes.annotate(
            f"{top1[k]:.2f} %",
            (costs[k], top1[k]),
            xytext=(0, -16),
            textcoords="offset points",
            ha="center",
            color="tab:orange",
        )
    axes.set_title(title)
    axes.set_xlabel("mult-adds per image, mean (millions)")
    axes.set_ylabel("test top-1 accuracy (%)")
    axes.margins(x=0.06, y=0.14)
    # However alike the exits are, one image more or less must not look like a step.
    bottom, top = axes.get_ylim()
    missing = max(0.0, _LEAST_POINTS_SHOWN - (top - bottom))
    axes.set_ylim(bottom - 0.8 * missing, top + 0.2 * missing)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


def curve_line(plot: Path) -> str:
    """Say where the plot of `log_evaluation` is; the folder of a submitted job is thrown away."""
    place = f"evaluation/{plot.name} of the MLflow run" if in_submitted_job() else plot
    return f"curve       {place}"


def log_evaluation(
    evaluation: Evaluation, run_id: str, model_id: str | None = None, *, folder: Path, title: str
) -> Path:
    """Write metrics, tables and the plot to an MLflow run.

    A run that was stopped while it did so, or just after, has nothing twice.

    Args:
        evaluation: what to write.
        run_id: the MLflow run.
        model_id: a model of MLflow to give the metrics and the curves to as well.
        folder: where the plot is kept on this machine.
        title: heading of the plot.

    Returns:
        The file of the plot.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "budget_curve.png"
    plot_curve(evaluation, title).savefig(plot, dpi=150)
    now = round(time.time() * 1000)
    metrics = [Metric(key, value, now, 0, model_id) for key, value in _metrics(evaluation).items()]
    # A curve of MLflow has whole steps: here they are mult-adds.
    metrics += [Metric(key, value, now, step, model_id) for key, step, value in _curves(evaluation)]
    with registry.client_to(f"log the evaluation to MLflow run {run_id}") as client:
        client.log_artifact(run_id, str(plot), "evaluation")
        # Not log_table: it would add the rows to those of an earlier start.
        tables = {f"evaluation/{name}.json": table for name, table in _tables(evaluation).items()}
        for file, table in tables.items():
            client.log_dict(run_id, table.to_dict("split", index=False), file)
        shown = [{"path": file, "type": "table"} for file in tables]
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps(shown))
        if metrics[0].key not in client.get_run(run_id).data.metrics:
            client.log_batch(run_id, metrics)
    return plot


def _metrics(evaluation: Evaluation) -> dict[str, float]:
    metrics = {"val/budget_mean/top1": evaluation.val_top1}
    for number, row in enumerate(evaluation.exits, start=1):
        metrics[f"test/exit{number}/top1"] = row.test_top1
        metrics[f"test/exit{number}/top5"] = row.test_top5
    for row in evaluation.reported:
        metrics[f"val/budget_{row.budget:.2f}/top1"] = row.val_top1
        metrics[f"test/budget_{row.budget:.2f}/top1"] = row.test_top1
        metrics[f"test/budget_{row.budget:.2f}/mult_adds"] = row.test_mult_adds
    return metrics


def _curves(evaluation: Evaluation) -> list[tuple[str, int, float]]:
    """Metric, mult-adds and accuracy of every point; of budgets that cost the same, the last."""
    anytime = {row.mult_adds: row.test_top1 for row in evaluation.exits}
    budgeted = {round(row.test_mult_adds): row.test_top1 for row in evaluation.curve}
    return [
        (f"test/{name}/top1", cost, top1)
        for name, points in (("anytime", anytime), ("budgeted", budgeted))
        for cost, top1 in points.items()
    ]


def _tables(evaluation: Evaluation) -> dict[str, pd.DataFrame]:
    exits = pd.DataFrame([asdict(row) for row in evaluation.exits])
    exits.insert(0, "exit", range(1, len(exits) + 1))
    budgets = pd.DataFrame(
        {
            "budget": row.budget,
            "val_top1": row.val_top1,
            "test_top1": row.test_top1,
            "test_mult_adds": row.test_mult_adds,
            **{f"exit{k}_share": share for k, share in enumerate(row.exit_shares, start=1)},
        }
        for row in evaluation.curve
    )
    return {"exits": exits, "budgets": budgets}


def save_examples(run: Run, folder: Path, count: int = 5) -> list[Path]:
    """Write the first test images as PNG files, named by their labels, for a first try of a model.

    Args:
        run: its images are prepared.
        folder: where to write them.
        count: how many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batches = open_batches(
        replace(run.data, loader="ffcv"),
        "test",
        image_size=run.model.image_size,
        batch_size=count,
        rank=0,
        num_workers=1,
        seed=0,
        device=torch.device("cpu"),
    )
    files = []
    with batches.epoch(0) as reader:
        images, labels = next(reader)
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True), start=1):
            files.append(folder / f"test{number}_label{label}.png")
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    return files


@dataclass(frozen=True)
class RegisteredVersion:
    """A model in the registry."""

    name: str
    version: str
    model_id: str
    sentence: str
    """What became of it: champion or candidate, and why."""


def register_model(
    run: Run,
    state_dict: dict[str, Tensor],
    evaluation: Evaluation,
    data_info: DatasetInfo,
    run_id: str,
) -> RegisteredVersion:
    """Log the model to an MLflow run, register it, and decide whether it is the champion.

    A run that was stopped while it did so registers nothing twice.

    Args:
        run: what was trained.
        state_dict: weights to register.
        evaluation: the network's accuracies and thresholds.
        data_info: what it was trained and evaluated on.
        run_id: the MLflow run.
    """
    name = run.registry.model_name
    found = registry.find_version(name, run_id)
    if found is None:
        budgets = ", ".join(f"{row.budget:.2f}" for row in evaluation.reported)
        found = registry.register(
            name,
            _log_model(run, state_dict, evaluation, data_info, run_id),
            run_id=run_id,
            score=evaluation.val_top1,
            yardstick=f"validation images {data_info.sha256['val'][:12]} at budgets {budgets}",
        )
    verdict = registry.offer(name, str(found.version), score_name=_SCORE_NAME)
    model_id = str(found.source).removeprefix("models:/")
    return RegisteredVersion(name, verdict.version, model_id, verdict.sentence)


def _log_model(
    run: Run,
    state_dict: dict[str, Tensor],
    evaluation: Evaluation,
    data_info: DatasetInfo,
    run_id: str,
) -> str:
    settings = {
        "model": asdict(run.model),
        "mean": run.data.mean,
        "std": run.data.std,
        "class_names": data_info.class_names,
        "validation_sha256": data_info.sha256["val"],
        "budgets": [row.budget for row in evaluation.curve],
        "answer": evaluation.answer,
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
        # Not mlflow.pyfunc.log_model: it would open the run, and end it too early.
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_id=model.model_id,
            python_model=str(Path(__file__).with_name("registered_model.py")),
            artifacts={"settings": str(settings_file), "tensors": str(tensors_file)},
            code_paths=[str(Path(ranet.__file__).parent)],
            signature=_signature(run.model.image_size),
            pip_requirements=[
                # Without the build, such as +cu130, which package indexes do not list.
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
        params=ParamSchema([ParamSpec("budget", DataType.double, default=1.0)]),
    )
