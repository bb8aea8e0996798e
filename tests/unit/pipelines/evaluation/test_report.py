"""Accuracy against mult-adds: the numbers, and what MLflow and people get to see of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow import MlflowClient
from PIL import Image

from cluster.errors import TrackingError
from pipelines.data.loading.loader import open_batches
from pipelines.data.preparation.prepare import prepare
from pipelines.evaluation.report import (
    Evaluation,
    budget_grid,
    check_budgets,
    evaluate_outputs,
    format_tables,
    log_evaluation,
    plot_curve,
    save_examples,
)
from ranet.evaluation.exit_outputs import ExitOutputs, SplitOutputs
from tests.support.registered import RUN, create_run

COSTS = (10, 30)


def make_scores(confidences: list[list[float]], correct: list[list[int]]) -> SplitOutputs:
    hits = torch.tensor(correct, dtype=torch.bool)
    scores = ExitOutputs(torch.tensor(confidences), hits, hits | hits.roll(1))
    return SplitOutputs(alone=scores, together=scores)


# Exit 1 is right where it is sure, and only there; exit 2 is always right.
VAL = make_scores([[0.9, 0.8, 0.3, 0.2], [0.9, 0.9, 0.9, 0.9]], [[1, 1, 0, 0], [1, 1, 1, 1]])
# On the test images exit 1 is sure once and wrong then; exit 2 errs on the last image.
TEST = make_scores([[0.95, 0.1, 0.1, 0.1], [0.9, 0.9, 0.9, 0.9]], [[0, 1, 0, 0], [1, 1, 1, 0]])


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate_outputs(COSTS, VAL, TEST, (0.34, 0.67, 1.0))


@pytest.fixture
def client(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return MlflowClient()


def test_where_exits_answer_together_all_numbers_are_of_that_way():
    # Alone exit 2 is right on every other image, together on all; exit 1 never is.
    confidences = torch.linspace(1, 0, 200).repeat(2, 1)
    none, half = torch.zeros(200, dtype=torch.bool), torch.arange(200) % 2 == 0
    alone = torch.stack([none, half])
    together = torch.stack([none, ~none])
    answers = SplitOutputs(
        ExitOutputs(confidences, alone, alone), ExitOutputs(confidences, together, together)
    )
    evaluation = evaluate_outputs(COSTS, answers, answers, (0.34, 1.0))
    assert evaluation.answer == "together"
    assert [row.test_top1 for row in evaluation.exits] == [0, 100]
    assert evaluation.reported[-1].test_top1 == 100
    assert "mean of all exits passed" in format_tables(evaluation)
    assert "mean of all" not in format_tables(evaluate_outputs(COSTS, VAL, TEST, (1.0,)))


def test_every_exit_is_scored_for_all_images(evaluation: Evaluation):
    first, last = evaluation.exits
    assert (first.mult_adds, first.val_top1, first.test_top1) == (10, 50, 25)
    assert (last.mult_adds, last.val_top1, last.test_top1) == (30, 100, 75)
    assert (first.test_top5, last.test_top5) == (50, 100)


def test_thresholds_of_a_budget_are_fitted_on_validation_and_scored_on_test(
    evaluation: Evaluation,
):
    # 0.67 of 30 is a mean of 20: two of the four validation images may go on to exit 2.
    row = next(row for row in evaluation.reported if row.budget == 0.67)
    assert row.val_top1 == 100
    assert 0.3 < row.thresholds[0] <= 0.8
    assert row.exit_shares == (25, 75)
    assert row.test_top1 == 50
    assert row.test_mult_adds == 25


def test_test_images_have_no_say_in_the_thresholds(evaluation: Evaluation):
    other = make_scores([[0.0] * 4, [1.0] * 4], [[1] * 4, [0] * 4])
    again = evaluate_outputs(COSTS, VAL, other, (0.34, 0.67, 1.0))
    assert [row.thresholds for row in again.curve] == [row.thresholds for row in evaluation.curve]


def test_the_smallest_budget_lets_every_image_leave_at_the_first_exit(evaluation: Evaluation):
    assert evaluation.curve[0].budget == 10 / 30
    assert evaluation.curve[0].exit_shares == (100, 0)
    assert evaluation.curve[0].test_mult_adds == 10


def test_versions_are_judged_by_the_mean_validation_accuracy_over_the_reported_budgets(
    evaluation: Evaluation,
):
    assert [row.budget for row in evaluation.reported] == [0.34, 0.67, 1.0]
    assert evaluation.val_top1 == pytest.approx((50 + 100 + 100) / 3)


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=8, unique=True).map(sorted))
@example([29, 100])  # 100 * 0.29 is below 29
def test_at_least_40_budgets_run_from_the_first_exit_to_the_last(costs: list[int]):
    grid = budget_grid(tuple(costs))
    assert len(grid) >= 40
    assert grid[0] == costs[0] / costs[-1]
    assert grid[-1] == 1
    assert list(grid) == sorted(set(grid))


def test_budgets_of_two_decimals_are_in_the_grid_exactly():
    assert set(budget_grid((1, 5))) >= {k / 100 for k in range(21, 101)}
    assert set(budget_grid((9, 10))) >= {k / 100 for k in range(91, 101)}


def test_a_network_with_one_exit_has_one_budget():
    assert budget_grid((7,)) == (1.0,)


def test_a_budget_below_the_first_exit_is_refused_with_the_smallest_that_works():
    with pytest.raises(
        ValueError, match=r"evaluation.budget_fractions must be 0.34 or more, got \(0.2, 1\)"
    ):
        check_budgets(COSTS, (0.2, 1))
    check_budgets(COSTS, (0.34, 1))


def test_the_tables_show_every_exit_and_every_budget(evaluation: Evaluation):
    exits, budgets = format_tables(evaluation).split("\n\n")
    assert [line.split() for line in exits.splitlines()[1:]] == [
        ["1", "0.00", "M", "25.00", "50.00"],
        ["2", "0.00", "M", "75.00", "100.00"],
    ]
    assert budgets.splitlines()[2].split() == ["0.67", "0.00", "M", "50.00", "25.0", "75.0"]


def test_the_plot_shows_both_settings_against_mult_adds(evaluation: Evaluation):
    axes = plot_curve(evaluation, "a title").axes[0]
    budgeted, anytime = axes.get_lines()
    assert np.asarray(anytime.get_xydata()).tolist() == [[10e-6, 25], [30e-6, 75]]
    assert len(np.asarray(budgeted.get_xydata())) == len(evaluation.curve)
    assert axes.get_title() == "a title"
    assert "mult-adds" in axes.get_xlabel()
    assert "top-1" in axes.get_ylabel()
    assert [text.get_text() for text in axes.texts] == ["1", "2", "25.00 %", "75.00 %"]


def test_mlflow_gets_metrics_tables_the_plot_and_curves_on_the_model(
    evaluation: Evaluation, client: MlflowClient, tmp_path: Path
):
    run_id = create_run(client, tmp_path)
    experiment_id = client.get_run(run_id).info.experiment_id
    model_id = client.create_logged_model(experiment_id, "tiny", source_run_id=run_id).model_id
    plot = log_evaluation(evaluation, run_id, model_id, folder=tmp_path / "out", title="a title")

    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert run.data.metrics["test/exit1/top1"] == 25
    assert run.data.metrics["test/exit2/top5"] == 100
    assert run.data.metrics["test/budget_0.67/top1"] == 50
    assert run.data.metrics["val/budget_mean/top1"] == evaluation.val_top1
    curve = client.get_metric_history(run_id, "test/anytime/top1")
    assert [(point.step, point.value) for point in curve] == [(10, 25), (30, 75)]
    on_model = client.get_logged_model(model_id).metrics or []
    assert {"test/anytime/top1", "test/budgeted/top1"} <= {metric.key for metric in on_model}

    table = json.loads(
        Path(client.download_artifacts(run_id, "evaluation/budgets.json")).read_text()
    )
    assert table["columns"][:2] == ["budget", "val_top1"]
    assert len(table["data"]) == len(evaluation.curve)
    assert Path(client.download_artifacts(run_id, "evaluation/budget_curve.png")).stat().st_size
    assert plot == tmp_path / "out" / "budget_curve.png"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_evaluation_logged_again_is_there_once(
    evaluation: Evaluation, client: MlflowClient, tmp_path: Path
):
    run_id = create_run(client, tmp_path)
    for _ in range(2):
        log_evaluation(evaluation, run_id, folder=tmp_path / "out", title="a title")
    names = client.get_run(run_id).data.metrics.keys()
    histories = {name: client.get_metric_history(run_id, name) for name in names}
    assert [point.value for point in histories["test/exit1/top1"]] == [25]
    for points in histories.values():
        assert len({point.step for point in points}) == len(points)
    experiment_id = client.get_run(run_id).info.experiment_id
    table = client.load_table(experiment_id, "evaluation/exits.json")
    assert table["test_top1"].tolist() == [25, 75]


def test_an_mlflow_that_is_away_is_one_clear_sentence(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9 cannot log the evaluation.*start"):
        log_evaluation(evaluation, "0" * 32, folder=tmp_path, title="a title")


def test_example_images_are_the_first_test_images_as_files(tmp_path: Path):
    run = replace(RUN, data=replace(RUN.data, folder=str(tmp_path / "digits"), crop="none"))
    prepare(run.data, run.model.image_size)
    files = save_examples(run, tmp_path / "examples", count=3)
    batches = open_batches(
        run.data, "test", image_size=16, batch_size=3, rank=0, num_workers=1, seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    with batches.epoch(0) as reader:
        images, labels = next(reader)
        expected = images.permute(0, 2, 3, 1).numpy().copy()
    assert [file.name for file in files] == [
        f"test{k}_label{label}.png" for k, label in enumerate(labels.tolist(), start=1)
    ]
    for file, pixels in zip(files, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), pixels)
