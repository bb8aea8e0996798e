"""Plots of a sweep."""

import numpy as np
import pytest
from matplotlib.text import Annotation

from tests.support.sweep_results import config_of, sweep_results, trial
from tuning.plots import importances, plot_front, plot_parallel
from tuning.reference_curves import RANET_CURVES
from tuning.report import write_report
from tuning.results import TrialResult


def test_front_plot_has_a_point_per_trial_and_budget_and_the_published_curve():
    stopped = trial(2, 66, 75, top=9e6, state="stopped")
    figure = plot_front(sweep_results(trial(1, 70, 80, 81), stopped, published="cifar10"))
    assert figure is not None
    (axes,) = figure.axes
    finished, early, marked = (
        np.asarray(points.get_offsets()).tolist() for points in axes.collections
    )
    assert finished == [[5, 70], [10, 80], [20, 81]]
    assert early == [
        [9, 66],
        [9, 75],
    ]  # the cost of the last exit limits the cost at a larger budget
    assert marked == [[5, 70], [9, 75], [10, 80], [20, 81]]
    front, published = axes.lines
    assert np.asarray(front.get_xydata()).tolist() == [
        [5, 70], [9, 75], [10, 80], [20, 81], [20, 81]
    ]  # fmt: skip
    expected = [[cost / 1e6, top1] for cost, top1 in RANET_CURVES["cifar10"]]
    assert np.asarray(published.get_xydata()).tolist() == expected


def test_front_plot_counts_points_far_below_the_front_at_its_lower_edge():
    budgets = (0.45e6, 0.6e6, 1.2e6)
    good = [trial(k, 93 + k, 93.5 + k, 93 + k, budgets=budgets) for k in (1, 2, 3)]
    poor = trial(4, 60, 70, 86, budgets=budgets)
    stopped = [
        trial(k, 6 * k, 6 * k, 6 * k, budgets=budgets, state="stopped") for k in (5, 6, 7, 8, 11)
    ]
    figure = plot_front(sweep_results(*good, poor, *stopped, budgets=budgets))
    assert figure is not None
    (axes,) = figure.axes
    bottom, top = axes.get_ylim()
    assert (bottom, top > 96.5) == (86, True)  # 10 points below the lowest accuracy on the front
    drawn = {
        str(points.get_label()): np.asarray(points.get_offsets()).tolist()
        for points in axes.collections
    }
    assert drawn["a trial at a budget"][-1] == [1.2, 86]
    assert drawn["a trial at a budget, below 86 %"] == [[0.45, 86], [0.6, 86]]
    edge = [[0.45, 86], [0.6, 86], [1.2, 86]]
    assert drawn["a trial at a budget, stopped early, below 86 %"] == edge * 5
    assert "a trial at a budget, stopped early" not in drawn
    counts = {
        note.xy: note.get_text()
        for note in axes.texts
        if isinstance(note, Annotation) and note.xy[1] == 86
    }
    assert counts == {(0.45, 86): "6 x", (0.6, 86): "6 x", (1.2, 86): "5 x"}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *(label for label in drawn if label.startswith("a trial")), "front, by trial number"
    ]  # fmt: skip


def test_plots_of_a_mixed_space_are_drawn(tmp_path):
    """Plot lists, names, missing and equal values, and narrow and wide ranges."""
    results = [
        trial(
            k, 70 + k, 80, 81,
            params={
                "model.scales": [[1, 2], [1, 2, 3]][k % 2],
                "train.loss.exit_weights": [[0.5, 1.5], [0.5, 1.0 * k, 1.5]][k % 2],
                "train.optim.lr": 10.0**-k,
                "exit_weights.family": "linear" if k % 3 else "uniform",
                **({"exit_weights.slope": k / 10} if k % 3 else {}),
                "train.epochs": 3,
            },
        )
        for k in range(1, 10)
    ]  # fmt: skip
    found = sweep_results(*results)
    assert list(found.columns()) == [
        "scales", "exit_weights[2]", "exit_weights[3]", "lr", "exit_weights.family",
        "exit_weights.slope",
    ]  # fmt: skip
    write_report(tmp_path, found, config_of)
    for name in ("pareto.png", "parallel_coordinates.png", "importances.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    figure = plot_parallel(found)
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        *found.columns(), "accuracy", "last exit, M"
    ]  # fmt: skip


def test_ticks_of_integers_are_integers():
    results = [trial(k, 70 + k, params={"model.growth_rate": k}) for k in (3, 5, 8)]
    figure = plot_parallel(sweep_results(*results))
    assert figure is not None
    (axes,) = figure.axes
    at_first = [note for note in axes.texts if isinstance(note, Annotation) and note.xy[0] == 0]
    assert [note.get_text() for note in at_first] == ["3", "4", "6", "7", "8"]


def test_decisive_parameter_is_the_most_important():
    def of(number: int) -> TrialResult:
        lr, growth = 10 ** -(1 + number % 7 / 2), 4 + number * 5 % 9
        top1 = 90 - 3 * (number % 7) + 0.1 * growth
        return trial(
            number, top1, params={"train.optim.lr": lr, "model.growth_rate": growth},
            values=(top1, float(growth)),
        )  # fmt: skip

    found = importances(
        sweep_results(
            *map(of, range(40)),
            objectives=("accuracy", "mult_adds"),
            directions=("maximize", "minimize"),
        )
    )
    assert found["accuracy"]["lr"] > 0.8
    assert found["mult_adds"]["growth_rate"] > 0.8
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1)


def test_importances_of_few_trials_are_empty():
    assert importances(sweep_results(*(trial(k, 70 + k) for k in range(1, 8)))) == {}
    assert importances(sweep_results(*(trial(k, 70 + k) for k in range(1, 9)))) != {}
