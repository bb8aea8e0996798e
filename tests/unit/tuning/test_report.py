"""Report of a sweep: summary, ranking and configs."""

import csv
from dataclasses import replace

import yaml

from tests.support.sweep_results import config_of, several, sweep_results, trial
from tuning.report import summarize, write_report


def test_with_several_objectives_the_front_is_ranked_first():
    found = several((90, 30e6), (80, 10e6), (89, 40e6), (85, 20e6))
    assert found.front == {1, 2, 4}
    assert [each.number for each in found.ranking] == [1, 4, 2, 3]
    table = summarize(found).splitlines()
    assert [line.split()[0] for line in table if "finished " in line] == ["1*", "2*", "3*", "4"]


def test_best_configs_are_files_named_after_sweep_and_budget(tmp_path):
    found = sweep_results(trial(1, 70, 80, 81), trial(2, 85, 90), budgets=(2.5e6, 5e6, 10e6, 20e6))
    write_report(tmp_path, found, config_of)
    files = {path.name: yaml.safe_load(path.read_text()) for path in tmp_path.glob("*.yaml")}
    assert files == {
        "best-5M.yaml": {"name": "digits-sweep-best-5M", "trial": 1, "budget": 5e6},
        "best-10M.yaml": {"name": "digits-sweep-best-10M", "trial": 2, "budget": 10e6},
        "best-20M.yaml": {"name": "digits-sweep-best-20M", "trial": 2, "budget": 20e6},
    }
    first = (tmp_path / "best-10M.yaml").read_text().splitlines()[0]
    assert first.startswith("# Best of sweep digits-sweep at 10 M mult-adds per image: 85.00 %")


def test_sweep_without_budgets_has_one_best_config(tmp_path):
    results = [trial(k, top1, budgets=(20e6,)) for k, top1 in ((1, 80.0), (2, 90.0))]
    summary = write_report(tmp_path, sweep_results(*results, budgets=()), config_of)
    (file,) = tmp_path.glob("*.yaml")
    assert yaml.safe_load(file.read_text())["trial"] == 2
    assert "best: accuracy 90.00 %, trial 2, best.yaml" in summary


def test_with_several_objectives_every_trial_on_the_front_has_a_config(tmp_path):
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


def test_with_several_objectives_and_budgets_front_and_budgets_have_configs(tmp_path):
    found = sweep_results(
        trial(1, 70, 80, 81, values=(77.0, 1.25)),
        trial(2, 60, 85, 90, values=(78.3, 3.5)),
        trial(3, 72, 73, 74, values=(73.0, 1.5)),
        objectives=("accuracy", "latency_ms"),
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
    # The best trial within 2 ms is the first one on the front with a latency of 2 ms or less.
    assert lines[start + 1 : start + 5] == [
        "best at 10 M: 85.00 %, trial 2, best-10M.yaml",
        "best at 20 M: 90.00 %, trial 2, best-20M.yaml",
        "on the front: accuracy 78.30 %, latency_ms 3.50, trial 2, best-trial2.yaml",
        "on the front: accuracy 77.00 %, latency_ms 1.25, trial 1, best-trial1.yaml",
    ]
    headings, *rows = lines[lines.index("") + 1 :][:4]
    assert "accuracy %  latency_ms" in headings
    assert [row.split()[8:10] for row in rows] == [
        ["78.30", "3.50"], ["77.00", "1.25"], ["73.00", "1.50"]
    ]  # fmt: skip
    assert [line.split()[1].rstrip(":") for line in lines if "growth_rate=" in line] == [*"321"]


def test_summary_counts_states_rejections_time_and_devices():
    stopped = trial(3, 60, 61, 62, state="stopped", epochs=2, seconds=30.0)
    failed = trial(4, state="failed", epochs=1, seconds=6.0, error="the loss is nan")
    text = summarize(
        sweep_results(
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
        "candidates rejected before training: 33",
        "      31  last exit above 50 M",
        "       2  tried before",
    ]
    assert "trial 4 failed: the loss is nan" in lines


def test_summary_lists_varied_parameters_and_gaps_on_the_front():
    text = summarize(sweep_results(trial(1, 70, 80, 81), trial(2, 66, 75, 90)))
    assert "trial 1: growth_rate=5\n" in text
    assert "lr=" not in text
    assert "front: 3 points from 5 M (70.00 %) to 20 M (90.00 %)" in text
    between = text.splitlines()[-4:-2]  # before the lines about importances
    assert between[0].strip() == "between 10 M (80.00 %) and 20 M (90.00 %)"


def test_summary_names_a_budget_that_no_trial_meets():
    text = summarize(sweep_results(trial(1, 80, 90, top=30e6)))
    assert "best at 5 M: no trial, the cheapest first exit costs 6 M" in text


def test_summary_has_the_first_rows_and_the_csv_has_all(tmp_path):
    results = [trial(k, k, k + 1, k + 2) for k in range(1, 26)]
    failed = trial(26, state="failed", error="no memory", params={"model.growth_rate": 3})
    summary = write_report(tmp_path, sweep_results(*results, failed), config_of)
    assert "and 5 more, in ranking.csv" in summary
    assert (tmp_path / "summary.txt").read_text() == summary + "\n"
    with (tmp_path / "ranking.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["trial"]) for row in rows] == [*range(25, 0, -1), 26]
    assert [rows[0][key] for key in ("rank", "model.growth_rate", "accuracy", "top1_at_1e+07")] == [
        "1", "29", "26.0", "26"
    ]  # fmt: skip
    assert [rows[-1][key] for key in ("rank", "train.optim.lr", "error")] == ["", "", "no memory"]


def test_sweep_without_measured_trials_has_a_report(tmp_path):
    failed = trial(1, state="failed", error="no memory")
    assert "no trial was measured" in write_report(tmp_path, sweep_results(failed), config_of)
    assert {path.name for path in tmp_path.iterdir()} == {"summary.txt", "ranking.csv"}


def test_summary_says_why_importances_are_omitted(tmp_path):
    results = [trial(k, 70 + k) for k in range(1, 9)]
    picture = tmp_path / "importances.png"
    summary = write_report(
        tmp_path, sweep_results(*results[:7], trial(9, state="failed")), config_of
    )
    assert not picture.exists()
    reason = "importances.png is omitted: it needs 8 measured trials and has 7"
    assert summary.splitlines()[-1] == reason
    summary = write_report(tmp_path, sweep_results(*results), config_of)
    assert picture.exists()
    assert "importances" not in summary
