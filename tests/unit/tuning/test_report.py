"""What people get of a sweep: ranking, summary, pictures and configs, from records alone."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import yaml
from matplotlib.text import Annotation

from pipelines.data.format.metadata import DatasetInfo
from pipelines.data.sources.class_index import read_class_index
from pipelines.tune import classes_in
from tuning.plots import importances, plot_front, plot_parallel
from tuning.reference_curves import RANET_CURVES, reference_curve_for
from tuning.report import summarize, write_report
from tuning.results import SweepResults
from tuning.trial_result import TrialResult


def trial(number: int, *top1: float, top: float = 20e6, **other) -> TrialResult:
    """A trial of a network with two exits, measured at 5, 10 and 20 M as far as `top1` goes."""
    return TrialResult(**{
        "number": number,
        "trial_id": f"id{number}",
        "run_id": f"run{number}",
        "settings": {"model.growth_rate": 4 + number, "train.optim.lr": 0.1},
        "state": "finished",
        "epochs": 6,
        "seconds": 90.0,
        "cost": (int(top) // 5, int(top)),
        "parameters": 250_000,
        "memory": 10**8,
        "values": (sum(top1) / len(top1),) if top1 else (),
        "budgets": (5e6, 10e6, 20e6)[len(top1) and 3 - len(top1):][:len(top1)],
        "accuracies": top1,
        **other,
    })  # fmt: skip


def outcome(*results: TrialResult, **other) -> SweepResults:
    return SweepResults(**{
        "name": "digits-sweep",
        "objectives": ("accuracy",),
        "directions": ("maximize",),
        "budgets": (5e6, 10e6, 20e6),
        "results": results,
        "rejected": {},
        "seconds": 4000.0,
        "devices": 2.0,
        "device": "CPU",
        **other,
    })  # fmt: skip


def config_of(result: TrialResult, name: str, budget: float | None) -> str:
    return yaml.safe_dump({"name": name, "trial": result.number, "budget": budget})


def several(*values: tuple[float, float]) -> SweepResults:
    """Accuracy and mult-adds of trials, and nothing else."""
    results = [trial(k, values=pair) for k, pair in enumerate(values, start=1)]
    return outcome(
        *results, objectives=("accuracy", "mult_adds"), directions=("maximize", "minimize")
    )


def test_trials_are_ranked_by_their_objective_and_equal_ones_by_cost():
    dear, cheap = trial(1, 80, 90, top=12e6), trial(2, 85, 85, top=11e6)
    best, unmeasured = trial(3, 86, 87), trial(4, state="failed", error="no memory")
    ranked = outcome(dear, cheap, best, unmeasured).ranking
    assert [each.number for each in ranked] == [3, 2, 1]
    latency = outcome(dear, replace(best, values=(3.0,)), directions=("minimize",))
    assert [each.number for each in latency.ranking] == [3, 1]


def test_a_trial_that_diverged_is_no_best_however_good_it_was_before():
    diverged = trial(1, 95, 96, 97, state="failed", error="the loss is nan")
    found = outcome(diverged, trial(2, 70, 80, 81))
    assert [each.number for each in found.ranking] == [2]
    assert found.front == {2}
    assert {result.number for *_, result in found.points()} == {2}
    assert all(found.best(budget) == found.ranking[0] for budget in found.budgets)


def test_of_several_objectives_the_front_comes_first():
    found = several((90, 30e6), (80, 10e6), (89, 40e6), (85, 20e6))
    assert found.front == {1, 2, 4}
    assert [each.number for each in found.ranking] == [1, 4, 2, 3]
    table = summarize(found).splitlines()
    assert [line.split()[0] for line in table if "finished " in line] == ["1*", "2*", "3*", "4"]


def test_the_best_of_a_budget_is_the_most_accurate_that_meets_it():
    small, large = trial(1, 70, 80, 81), trial(2, 85, 90, top=30e6)
    found = outcome(small, large, trial(3, 70, 80, 81, top=19e6))
    best = {budget: found.best(budget) for budget in found.budgets}
    numbers = [None if each is None else each.number for each in best.values()]
    assert numbers == [3, 2, 2]
    assert outcome(large).best(5e6) is None


def test_every_best_config_is_a_file_that_is_named_after_sweep_and_budget(tmp_path):
    found = outcome(trial(1, 70, 80, 81), trial(2, 85, 90), budgets=(2.5e6, 5e6, 10e6, 20e6))
    write_report(tmp_path, found, config_of)
    files = {path.name: yaml.safe_load(path.read_text()) for path in tmp_path.glob("*.yaml")}
    assert files == {
        "best-5M.yaml": {"name": "digits-sweep-best-5M", "trial": 1, "budget": 5e6},
        "best-10M.yaml": {"name": "digits-sweep-best-10M", "trial": 2, "budget": 10e6},
        "best-20M.yaml": {"name": "digits-sweep-best-20M", "trial": 2, "budget": 20e6},
    }
    first = (tmp_path / "best-10M.yaml").read_text().splitlines()[0]
    assert first.startswith("# Best of sweep digits-sweep at 10 M mult-adds an image: 85.00 %")


def test_without_budgets_there_is_one_best_config(tmp_path):
    results = [trial(k, top1, budgets=(20e6,)) for k, top1 in ((1, 80.0), (2, 90.0))]
    summary = write_report(tmp_path, outcome(*results, budgets=()), config_of)
    (file,) = tmp_path.glob("*.yaml")
    assert yaml.safe_load(file.read_text())["trial"] == 2
    assert "best: accuracy 90.00 %, trial 2, best.yaml" in summary


def test_of_several_objectives_every_trial_of_the_front_has_its_config(tmp_path):
    found = replace(several((90, 30e6), (80, 10e6), (89, 40e6)), budgets=())
    summary = write_report(tmp_path, found, config_of)
    files = {path.name: yaml.safe_load(path.read_text()) for path in tmp_path.glob("*.yaml")}
    assert files == {
        f"best-trial{number}.yaml": {
            "name": f"digits-sweep-best-trial{number}", "trial": number, "budget": None,
        }
        for number in (1, 2)
    }  # fmt: skip
    first = (tmp_path / "best-trial2.yaml").read_text().splitlines()[0]
    assert first.startswith(
        "# On the front of sweep digits-sweep: accuracy 80.00 %, mult_adds 10 M"
    )
    assert "on the front: accuracy 80.00 %, mult_adds 10 M, trial 2, best-trial2.yaml" in summary


def test_of_several_objectives_and_budgets_both_kinds_of_best_have_their_configs(tmp_path):
    found = outcome(
        trial(1, 70, 80, 81, values=(77.0, 1.25)),
        trial(2, 60, 85, 90, values=(78.3, 3.5)),
        trial(3, 72, 73, 74, values=(73.0, 1.5)),
        objectives=("accuracy", "latency"),
        directions=("maximize", "minimize"),
    )
    summary = write_report(tmp_path, found, config_of)
    files = {path.name: yaml.safe_load(path.read_text()) for path in tmp_path.glob("*.yaml")}
    expected = {
        "best-5M": (3, 5e6), "best-10M": (2, 10e6), "best-20M": (2, 20e6),
        "best-trial1": (1, None), "best-trial2": (2, None),
    }  # fmt: skip
    assert files == {
        f"{name}.yaml": {"name": f"digits-sweep-{name}", "trial": number, "budget": budget}
        for name, (number, budget) in expected.items()
    }
    lines = summary.splitlines()
    start = lines.index("best at 5 M: 72.00 %, trial 3, best-5M.yaml")
    # "The best within 2 ms" is the first of the front that takes no longer.
    assert lines[start + 1 : start + 5] == [
        "best at 10 M: 85.00 %, trial 2, best-10M.yaml",
        "best at 20 M: 90.00 %, trial 2, best-20M.yaml",
        "on the front: accuracy 78.30 %, latency 3.50 ms, trial 2, best-trial2.yaml",
        "on the front: accuracy 77.00 %, latency 1.25 ms, trial 1, best-trial1.yaml",
    ]
    headings, *rows = lines[lines.index("") + 1 :][:4]
    assert "accuracy %  latency ms" in headings
    assert [row.split()[8:10] for row in rows] == [
        ["78.30", "3.50"], ["77.00", "1.25"], ["73.00", "1.50"]
    ]  # fmt: skip
    assert [line.split()[1].rstrip(":") for line in lines if "growth_rate=" in line] == [*"321"]


def test_the_summary_counts_states_rejections_time_and_devices():
    stopped = trial(3, 60, 61, 62, state="stopped", epochs=2, seconds=30.0)
    failed = trial(4, state="failed", epochs=1, seconds=6.0, error="the loss is nan")
    text = summarize(
        outcome(
            trial(1, 70, 80, 81), trial(2, 71, 80, 80), stopped, failed,
            rejected={"tried before": 2, "last exit above 50 M": 31},
        )
    )  # fmt: skip
    lines = text.splitlines()
    assert lines[:2] == [
        "sweep digits-sweep: 4 trials, 2 finished, 1 stopped early, 1 failed",
        # (2 x 90 + 30 + 6) s x 2 CPUs
        "spent: 1 h 6 min, 15 trial-epochs, 0.12 CPU-hours in trials",
    ]
    assert lines[2:5] == [
        "samples rejected before training: 33",
        "      31  last exit above 50 M",
        "       2  tried before",
    ]
    assert "trial 4 failed: the loss is nan" in lines


def test_the_summary_tells_what_differs_between_trials_and_where_the_front_is_thin():
    text = summarize(outcome(trial(1, 70, 80, 81), trial(2, 66, 75, 90)))
    assert "trial 1: growth_rate=5\n" in text
    assert "lr=" not in text
    assert "front: 3 points from 5 M (70.00 %) to 20 M (90.00 %)" in text
    between = text.splitlines()[-4:-2]  # before why there are no importances
    assert between[0].strip() == "between 10 M (80.00 %) and 20 M (90.00 %)"


def test_a_budget_that_no_trial_meets_is_named():
    text = summarize(outcome(trial(1, 80, 90, top=30e6)))
    assert "best at 5 M: no trial, the cheapest first exit costs 6 M" in text


def test_only_the_first_rows_are_shown_and_all_are_in_the_csv(tmp_path):
    results = [trial(k, k, k + 1, k + 2) for k in range(1, 26)]
    failed = trial(26, state="failed", error="no memory", settings={"model.growth_rate": 3})
    summary = write_report(tmp_path, outcome(*results, failed), config_of)
    assert "and 5 more, in ranking.csv" in summary
    assert (tmp_path / "summary.txt").read_text() == summary + "\n"
    with (tmp_path / "ranking.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["trial"]) for row in rows] == [*range(25, 0, -1), 26]
    assert [rows[0][key] for key in ("rank", "model.growth_rate", "accuracy", "top1_at_1e+07")] == [
        "1", "29", "26.0", "26"
    ]  # fmt: skip
    assert [rows[-1][key] for key in ("rank", "train.optim.lr", "error")] == ["", "", "no memory"]


def test_a_sweep_without_a_measured_trial_still_has_its_report(tmp_path):
    failed = trial(1, state="failed", error="no memory")
    assert "no trial was measured" in write_report(tmp_path, outcome(failed), config_of)
    assert {path.name for path in tmp_path.iterdir()} == {"summary.txt", "ranking.csv"}


def test_the_picture_has_a_point_for_each_trial_and_budget_and_the_published_curve():
    stopped = trial(2, 66, 75, top=9e6, state="stopped")
    figure = plot_front(outcome(trial(1, 70, 80, 81), stopped, published="cifar10"))
    assert figure is not None
    (axes,) = figure.axes
    finished, early, marked = (
        np.asarray(points.get_offsets()).tolist() for points in axes.collections
    )
    assert finished == [[5, 70], [10, 80], [20, 81]]
    assert early == [[9, 66], [9, 75]]  # it costs no more than its last exit
    assert marked == [[5, 70], [9, 75], [10, 80], [20, 81]]
    front, published = axes.lines
    assert np.asarray(front.get_xydata()).tolist() == [
        [5, 70], [9, 75], [10, 80], [20, 81], [20, 81]
    ]  # fmt: skip
    expected = [[cost / 1e6, top1] for cost, top1 in RANET_CURVES["cifar10"]]
    assert np.asarray(published.get_xydata()).tolist() == expected


def test_points_far_below_the_front_are_counted_at_the_lower_edge_of_the_picture():
    budgets = (0.45e6, 0.6e6, 1.2e6)
    good = [trial(k, 93 + k, 93.5 + k, 93 + k, budgets=budgets) for k in (1, 2, 3)]
    poor = trial(4, 60, 70, 86, budgets=budgets)
    stopped = [
        trial(k, 6 * k, 6 * k, 6 * k, budgets=budgets, state="stopped") for k in (5, 6, 7, 8, 11)
    ]
    figure = plot_front(outcome(*good, poor, *stopped, budgets=budgets))
    assert figure is not None
    (axes,) = figure.axes
    bottom, top = axes.get_ylim()
    assert (bottom, top > 96.5) == (86, True)  # 10 below the least accurate of the front
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


def test_the_published_curve_is_that_of_the_classes_wherever_the_images_come_from():
    animals = ("bird", "cat", "deer", "dog", "frog", "horse")
    cifar10 = ("airplane", "automobile", *animals, "ship", "truck")
    hundred = ("apple", "aquarium_fish", *map(str, range(98)))
    imagenet = read_class_index("configs/imagenet_classes.txt")
    found = [reference_curve_for(names) for names in (cifar10, hundred, imagenet)]
    assert found == ["cifar10", "cifar100", "imagenet"] == list(RANET_CURVES)
    digits = tuple("0123456789")
    stl10 = ("airplane", "car", "monkey", "bird", "cat", "deer", "dog", "horse", "ship", "truck")
    assert {
        reference_curve_for(names) for names in (digits, stl10, imagenet[:100], cifar10[:9])
    } == {""}
    info = DatasetInfo(
        folder="", class_names=cifar10, num_samples={}, sha256={}, skipped={},
        samples_per_class={"train": (5,) * 9 + (0,)},
    )  # fmt: skip
    assert classes_in(info) == cifar10[:9]


def test_the_pictures_of_a_mixed_space_are_drawn(tmp_path):
    """Lists, names, missing and equal values, ranges of one and of many powers of ten."""
    results = [
        trial(
            k, 70 + k, 80, 81,
            settings={
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
    found = outcome(*results)
    assert list(found.columns()) == [
        "scales", "exit_loss_weights[2]", "exit_loss_weights[3]", "lr", "exit_weights.family",
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


def test_whole_numbers_are_whole_at_their_axis():
    results = [trial(k, 70 + k, settings={"model.growth_rate": k}) for k in (3, 5, 8)]
    figure = plot_parallel(outcome(*results))
    assert figure is not None
    (axes,) = figure.axes
    at_first = [note for note in axes.texts if isinstance(note, Annotation) and note.xy[0] == 0]
    assert [note.get_text() for note in at_first] == ["3", "4", "6", "7", "8"]


def test_the_setting_that_decides_is_the_most_important():
    def of(number: int) -> TrialResult:
        lr, growth = 10 ** -(1 + number % 7 / 2), 4 + number * 5 % 9
        top1 = 90 - 3 * (number % 7) + 0.1 * growth
        return trial(
            number, top1, settings={"train.optim.lr": lr, "model.growth_rate": growth},
            values=(top1, float(growth)),
        )  # fmt: skip

    found = importances(
        outcome(
            *map(of, range(40)),
            objectives=("accuracy", "mult_adds"),
            directions=("maximize", "minimize"),
        )
    )
    assert found["accuracy"]["lr"] > 0.8
    assert found["mult_adds"]["growth_rate"] > 0.8
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1)


def test_few_trials_have_no_importances():
    assert importances(outcome(*(trial(k, 70 + k) for k in range(1, 8)))) == {}
    assert importances(outcome(*(trial(k, 70 + k) for k in range(1, 9)))) != {}


def test_the_summary_says_why_importances_are_absent(tmp_path):
    results = [trial(k, 70 + k) for k in range(1, 9)]
    picture = tmp_path / "importances.png"
    summary = write_report(tmp_path, outcome(*results[:7], trial(9, state="failed")), config_of)
    assert not picture.exists()
    told = "importances.png is left out: it needs 8 measured trials and has 7"
    assert summary.splitlines()[-1] == told
    summary = write_report(tmp_path, outcome(*results), config_of)
    assert picture.exists()
    assert "importances" not in summary
