"""What people get of a sweep: a summary, a ranking, pictures, and the best configs as files."""

import csv
import json
import textwrap
from collections.abc import Callable
from pathlib import Path

from tuning.pareto import gaps
from tuning.plots import FEWEST_FOR_IMPORTANCES, plot_front, plot_importances, plot_parallel
from tuning.results import SweepResults, TrialResult, accuracy_at, millions, shown

_ROWS_SHOWN = 20
_GAPS_SHOWN = 2
_UNITS = {"accuracy": "%", "area": "%", "latency": "ms"}


def write_report(
    folder: Path, outcome: SweepResults, config_of: Callable[[TrialResult, str, float | None], str]
) -> str:
    """Write summary.txt, ranking.csv, three pictures and the best configs to a folder.

    A picture that has nothing to show is left out: without measured trials all of them are, and
    importances need `FEWEST_FOR_IMPORTANCES` of these.

    Args:
        folder: made where it is missing.
        outcome: what the sweep did.
        config_of: gives the whole run of a trial as YAML, under the name, for the budget in
            mult-adds if it is one's best.

    Returns:
        The summary, for a terminal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file, (result, budget, title) in _winners(outcome).items():
        text = config_of(result, f"{outcome.name}-{file.removesuffix('.yaml')}", budget)
        (folder / file).write_text(f"# {title}\n{text}", encoding="utf-8")
    summary = summarize(outcome)
    (folder / "summary.txt").write_text(summary + "\n", encoding="utf-8")
    write_ranking(folder / "ranking.csv", outcome)
    pictures = {
        "pareto.png": plot_front(outcome),
        "parallel_coordinates.png": plot_parallel(outcome),
        "importances.png": plot_importances(outcome),
    }
    for file, figure in pictures.items():
        if figure is not None:
            figure.savefig(folder / file, dpi=120)
    return summary


def _winners(outcome: SweepResults) -> dict[str, tuple[TrialResult, float | None, str]]:
    """Name the file of each best config: its trial, its budget, and what it says of itself.

    Each budget has its best, several objectives have the trials of their front, whether there are
    budgets or not.
    """
    found: dict[str, tuple[TrialResult, float | None, str]] = {}
    for budget in outcome.budgets:
        if (result := outcome.best(budget)) is not None:
            title = (
                f"Best of sweep {outcome.name} at {millions(budget)} mult-adds an image: "
                f"{accuracy_at(result, budget):.2f} % of held-out images after "
                f"{result.epochs} epochs, trial {result.number}"
            )
            found[f"best-{budget / 1e6:g}M.yaml"] = result, budget, title
    several = len(outcome.objectives) > 1
    if outcome.budgets and not several:
        return found
    # Of one objective a single trial is on the front, or equal ones, of which the first counts.
    for result in outcome.ranking[: len(outcome.front) if several else 1]:
        title = (
            f"{'On the front' if several else 'Best'} of sweep {outcome.name}: "
            f"{_values(outcome, result)} after {result.epochs} epochs, trial {result.number}"
        )
        found[f"best-trial{result.number}.yaml" if several else "best.yaml"] = result, None, title
    return found


def summarize(outcome: SweepResults) -> str:
    """Return what a person wants to know first, in lines of text."""
    lines = [_counts(outcome), *_spent(outcome), "", *_table(outcome)]
    failed = [result for result in outcome.results if result.state == "failed"]
    if failed:
        lines += ["", *(f"trial {each.number} failed: {each.error}" for each in failed)]
    if outcome.ranking:
        lines += ["", *_bests(outcome), "", *_thin(outcome)]
    if 0 < len(outcome.ranking) < FEWEST_FOR_IMPORTANCES:
        lines += [
            "",
            f"importances.png is left out: it needs {FEWEST_FOR_IMPORTANCES} measured trials "
            f"and has {len(outcome.ranking)}",
        ]
    return "\n".join(lines)


def _counts(outcome: SweepResults) -> str:
    states = [result.state for result in outcome.results]
    words = {"finished": "finished", "stopped": "stopped early", "failed": "failed"}
    counts = [f"{states.count(state)} {word}" for state, word in words.items() if state in states]
    return f"sweep {outcome.name}: {len(states)} trials, {', '.join(counts) or 'none started'}"


def _spent(outcome: SweepResults) -> list[str]:
    held = sum(result.seconds for result in outcome.results) * outcome.devices
    epochs = sum(result.epochs for result in outcome.results)
    lines = [
        f"spent: {_duration(outcome.seconds)}, {epochs} trial-epochs, "
        f"{held / 3600:.2f} {outcome.device}-hours in trials"
    ]
    if outcome.rejected:
        reasons = sorted(outcome.rejected.items(), key=lambda item: -item[1])
        lines.append(f"samples rejected before training: {sum(outcome.rejected.values())}")
        lines += [f"{count:8d}  {reason}" for reason, count in reasons]
    else:
        lines.append("samples rejected before training: none")
    return lines


def _table(outcome: SweepResults) -> list[str]:
    if not outcome.ranking:
        return ["no trial was measured"]
    several = len(outcome.objectives) > 1
    headings = ["rank", "trial", "state", "epochs", "last exit", "weights"]
    headings += [_with_unit(name.replace("_", "-"), name) for name in outcome.objectives]
    headings += [f"% at {millions(budget)}" for budget in outcome.budgets]
    rows = []
    on_front = outcome.front
    for rank, result in enumerate(outcome.ranking[:_ROWS_SHOWN], start=1):
        mark = "*" if several and result.number in on_front else ""
        row = [f"{rank}{mark}", str(result.number), result.state, str(result.epochs)]
        row += [millions(result.cost[-1]), millions(result.parameters)]
        row += [_number(value) for value in result.values]
        row += [
            f"{accuracy_at(result, budget):.2f}" if budget in result.budgets else "-"
            for budget in outcome.budgets
        ]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (headings, *rows)
    ]
    if len(outcome.ranking) > _ROWS_SHOWN:
        lines.append(f"and {len(outcome.ranking) - _ROWS_SHOWN} more, in ranking.csv")
    if several:
        lines.append("*: no other trial beats it in all objectives")
    return lines


def _bests(outcome: SweepResults) -> list[str]:
    lines = []
    winners = _winners(outcome)
    for file, (result, budget, _) in winners.items():
        if budget is None:
            place = "on the front" if len(outcome.objectives) > 1 else "best"
            value = _values(outcome, result)
        else:
            place = f"best at {millions(budget)}"
            value = f"{accuracy_at(result, budget):.2f} %"
        lines.append(f"{place}: {value}, trial {result.number}, {file}")
    cheapest = min(result.cost[0] for result in outcome.ranking)
    lines += [
        f"best at {millions(budget)}: no trial, the cheapest first exit costs {millions(cheapest)}"
        for budget in outcome.budgets
        if outcome.best(budget) is None
    ]
    for result in {result.number: result for result, *_ in winners.values()}.values():
        pairs = [f"{name}={shown(value)}" for name, value in outcome.varied(result).items()]
        lines += textwrap.wrap(
            f"trial {result.number}: {'  '.join(pairs)}", 100, subsequent_indent="    "
        )
    return lines


def _thin(outcome: SweepResults) -> list[str]:
    """Say between which costs the front has the most room."""
    points = [(cost, top1) for cost, top1, _ in outcome.points()]
    found = gaps(points)
    if not found:
        return ["front: a single point; more budgets, or networks of other costs, would draw it"]
    start, end = (pick(found, key=lambda gap: gap.cheaper[0]) for pick in (min, max))
    lines = [
        f"front: {len(found) + 1} points from {millions(start.cheaper[0])} "
        f"({start.cheaper[1]:.2f} %) to {millions(end.dearer[0])} ({end.dearer[1]:.2f} %); "
        "thinnest"
    ]
    lines += [
        f"    between {millions(gap.cheaper[0])} ({gap.cheaper[1]:.2f} %) and "
        f"{millions(gap.dearer[0])} ({gap.dearer[1]:.2f} %)"
        for gap in found[:_GAPS_SHOWN]
    ]
    return lines


def write_ranking(file: Path, outcome: SweepResults) -> None:
    """Write every trial with all that is known of it as CSV, best first, unmeasured ones last."""
    names = sorted({name for result in outcome.results for name in result.settings})
    ranked = outcome.ranking
    rest = [result for result in outcome.results if result not in ranked]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([
            "rank", "trial", "trial_id", "run_id", "state", "epochs", "seconds", "mult_adds",
            "parameters", "memory_bytes", *outcome.objectives,
            *(f"top1_at_{budget:g}" for budget in outcome.budgets), *names, "error",
        ])  # fmt: skip
        for rank, result in enumerate((*ranked, *rest), start=1):
            writer.writerow([
                rank if result in ranked else "", result.number, result.trial_id, result.run_id,
                result.state, result.epochs, f"{result.seconds:.1f}", result.cost[-1],
                result.parameters, result.memory,
                *(result.values or [""] * len(outcome.objectives)),
                *(accuracy_at(result, budget) if budget in result.budgets else ""
                  for budget in outcome.budgets),
                *(json.dumps(result.settings[name]) if name in result.settings else ""
                  for name in names),
                result.error,
            ])  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1e4 else millions(value)


def _values(outcome: SweepResults, result: TrialResult) -> str:
    pairs = zip(outcome.objectives, result.values, strict=True)
    return ", ".join(_with_unit(f"{name} {_number(value)}", name) for name, value in pairs)


def _with_unit(text: str, objective: str) -> str:
    return f"{text} {_UNITS[objective]}" if objective in _UNITS else text


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
