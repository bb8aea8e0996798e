"""Report of a sweep: summary, ranking, plots and best configs."""

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from tuning.pareto import gaps
from tuning.plots import MIN_TRIALS_FOR_IMPORTANCES, plot_front, plot_importances, plot_parallel
from tuning.results import SweepResults, TrialResult, accuracy_at, format_value, millions

_ROWS_SHOWN = 20
_GAPS_SHOWN = 2
_UNITS = {"accuracy": "%", "accuracy_auc": "%"}


def write_report(
    folder: Path, results: SweepResults, config_of: Callable[[TrialResult, str, float | None], str]
) -> str:
    """Write summary.txt, ranking.csv, three plots and the best configs to a folder.

    Plots without data are omitted: all of them without measured trials, and importances with fewer
    than `MIN_TRIALS_FOR_IMPORTANCES` measured trials.

    Args:
        folder: created if it is missing.
        results: results of the sweep.
        config_of: returns the run of a trial as YAML, given its new name and the budget in
            mult-adds that it is the best for, if any.

    Returns:
        The summary, for a terminal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file, (result, budget, title) in _winners(results).items():
        text = config_of(result, f"{results.name}-{file.removesuffix('.yaml')}", budget)
        (folder / file).write_text(f"# {title}\n{text}", encoding="utf-8")
    summary = summarize(results)
    (folder / "summary.txt").write_text(summary + "\n", encoding="utf-8")
    write_ranking(folder / "ranking.csv", results)
    plots = {
        "pareto.png": plot_front(results),
        "parallel_coordinates.png": plot_parallel(results),
        "importances.png": plot_importances(results),
    }
    for file, figure in plots.items():
        if figure is not None:
            figure.savefig(folder / file, dpi=120)
    return summary


def _winners(results: SweepResults) -> dict[str, tuple[TrialResult, float | None, str]]:
    """Return the best configs by file name, with trial and budget.

    There is one config per budget, and with several objectives one per trial on their front; with
    a single objective and no budgets there is one config.
    """
    found: dict[str, tuple[TrialResult, float | None, str]] = {}
    for budget in results.budgets:
        if (result := results.best(budget)) is not None:
            title = (
                f"Best of sweep {results.name} at {millions(budget)} mult-adds per image: "
                f"{accuracy_at(result, budget):.2f} % on held-out images after "
                f"{result.epochs} epochs, trial {result.number}"
            )
            found[f"best-{budget / 1e6:g}M.yaml"] = result, budget, title
    several = len(results.objectives) > 1
    if results.budgets and not several:
        return found
    # With one objective the front is the best trial, or several equal ones: take the first.
    for result in results.ranking[: len(results.front) if several else 1]:
        title = (
            f"{'On the front' if several else 'Best'} of sweep {results.name}: "
            f"{_values(results, result)} after {result.epochs} epochs, trial {result.number}"
        )
        found[f"best-trial{result.number}.yaml" if several else "best.yaml"] = result, None, title
    return found


def summarize(results: SweepResults) -> str:
    """Summarize a sweep: counts, time, ranking, best configs, gaps."""
    lines = [_counts(results), *_spent(results), "", *_table(results)]
    failed = [result for result in results.trials if result.state == "failed"]
    if failed:
        lines += ["", *(f"trial {each.number} failed: {each.error}" for each in failed)]
    if results.ranking:
        lines += ["", *_bests(results), "", *_front_lines(results)]
    if 0 < len(results.ranking) < MIN_TRIALS_FOR_IMPORTANCES:
        lines += [
            "",
            f"importances.png is omitted: it needs {MIN_TRIALS_FOR_IMPORTANCES} measured trials "
            f"and has {len(results.ranking)}",
        ]
    return "\n".join(lines)


def _counts(results: SweepResults) -> str:
    states = [result.state for result in results.trials]
    words = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
    counts = [f"{states.count(state)} {word}" for state, word in words.items() if state in states]
    return f"sweep {results.name}: {len(states)} trials, {', '.join(counts) or 'none started'}"


def _spent(results: SweepResults) -> list[str]:
    held = sum(result.seconds for result in results.trials) * results.devices
    epochs = sum(result.epochs for result in results.trials)
    lines = [
        f"spent: {_duration(results.seconds)}, {epochs} trial-epochs, "
        f"{held / 3600:.2f} {results.device}-hours in trials"
    ]
    if results.rejected:
        reasons = sorted(results.rejected.items(), key=lambda item: -item[1])
        lines.append(f"candidates rejected before training: {sum(results.rejected.values())}")
        lines += [f"{count:8d}  {reason}" for reason, count in reasons]
    else:
        lines.append("candidates rejected before training: none")
    return lines


def _table(results: SweepResults) -> list[str]:
    if not results.ranking:
        return ["no trial was measured"]
    several = len(results.objectives) > 1
    shown = results.ranking[:_ROWS_SHOWN]
    columns = {
        "rank": [
            f"{rank}{'*' if several and result.number in results.front else ''}"
            for rank, result in enumerate(shown, start=1)
        ],
        "trial": [str(result.number) for result in shown],
        "state": [result.state for result in shown],
        "epochs": [str(result.epochs) for result in shown],
        "last exit": [millions(result.cost[-1]) for result in shown],
        "parameters": [millions(result.parameters) for result in shown],
    }
    for k, name in enumerate(results.objectives):
        columns[_with_unit(name, name)] = [_number(result.values[k]) for result in shown]
    for budget in results.budgets:
        columns[f"% at {millions(budget)}"] = [
            f"{accuracy_at(result, budget):.2f}" if budget in result.budgets else "-"
            for result in shown
        ]
    # pandas separates columns by one space, but headings contain spaces: add a second one.
    ranks = pd.DataFrame({"rank": columns.pop("rank")})
    others = pd.DataFrame(columns).add_prefix(" ").map(lambda cell: f" {cell}")
    lines = ranks.join(others).to_string(index=False).splitlines()
    if len(results.ranking) > _ROWS_SHOWN:
        lines.append(f"and {len(results.ranking) - _ROWS_SHOWN} more, in ranking.csv")
    if several:
        lines.append("*: on the Pareto front")
    return lines


def _bests(results: SweepResults) -> list[str]:
    lines = []
    winners = _winners(results)
    for file, (result, budget, _) in winners.items():
        if budget is None:
            label = "on the front" if len(results.objectives) > 1 else "best"
            value = _values(results, result)
        else:
            label = f"best at {millions(budget)}"
            value = f"{accuracy_at(result, budget):.2f} %"
        lines.append(f"{label}: {value}, trial {result.number}, {file}")
    cheapest = min(result.cost[0] for result in results.ranking)
    lines += [
        f"best at {millions(budget)}: no trial, the cheapest first exit costs {millions(cheapest)}"
        for budget in results.budgets
        if results.best(budget) is None
    ]
    for result in {result.number: result for result, *_ in winners.values()}.values():
        pairs = [f"{name}={format_value(value)}" for name, value in results.varied(result).items()]
        lines += textwrap.wrap(
            f"trial {result.number}: {'  '.join(pairs)}", 100, subsequent_indent="    "
        )
    return lines


def _front_lines(results: SweepResults) -> list[str]:
    """Return lines on the extent of the front and its largest gaps."""
    points = [(cost, top1) for cost, top1, _ in results.points()]
    found = gaps(points)
    if not found:
        return ["front: a single point; add budgets, or networks of other costs"]
    start, end = (pick(found, key=lambda gap: gap.cheaper[0]) for pick in (min, max))
    lines = [
        f"front: {len(found) + 1} points from {millions(start.cheaper[0])} "
        f"({start.cheaper[1]:.2f} %) to {millions(end.costlier[0])} ({end.costlier[1]:.2f} %); "
        "largest gaps"
    ]
    lines += [
        f"    between {millions(gap.cheaper[0])} ({gap.cheaper[1]:.2f} %) and "
        f"{millions(gap.costlier[0])} ({gap.costlier[1]:.2f} %)"
        for gap in found[:_GAPS_SHOWN]
    ]
    return lines


def write_ranking(file: Path, results: SweepResults) -> None:
    """Write all trials as CSV: measured ones by rank, then the others."""
    ranked = results.ranking
    rows = [_ranking_row(results, result, str(k)) for k, result in enumerate(ranked, start=1)]
    rows += [_ranking_row(results, each, "") for each in results.trials if each not in ranked]
    pd.DataFrame(rows).to_csv(file, index=False)


def _ranking_row(results: SweepResults, result: TrialResult, rank: str) -> dict[str, Any]:
    names = sorted({name for each in results.trials for name in each.params})
    values = result.values or ("",) * len(results.objectives)
    row: dict[str, Any] = {
        "rank": rank,
        "trial": result.number,
        "trial_id": result.trial_id,
        "run_id": result.run_id,
        "state": result.state,
        "epochs": result.epochs,
        "seconds": f"{result.seconds:.1f}",
        "mult_adds": result.cost[-1],
        "parameters": result.parameters,
        "memory_bytes": result.memory_bytes,
    }
    for name, value in zip(results.objectives, values, strict=True):
        row.setdefault(name, value)  # the objective mult_adds has a column already
    for budget in results.budgets:
        is_measured = budget in result.budgets
        row[f"top1_at_{budget:g}"] = accuracy_at(result, budget) if is_measured else ""
    for name in names:
        row[name] = json.dumps(result.params[name]) if name in result.params else ""
    return row | {"error": result.error}


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e4 else millions(value)


def _values(results: SweepResults, result: TrialResult) -> str:
    pairs = zip(results.objectives, result.values, strict=True)
    return ", ".join(_with_unit(f"{name} {_number(value)}", name) for name, value in pairs)


def _with_unit(text: str, objective: str) -> str:
    return f"{text} {_UNITS[objective]}" if objective in _UNITS else text


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
