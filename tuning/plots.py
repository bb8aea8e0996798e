"""Plots of a sweep: Pareto front, parallel coordinates, parameter importances."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Affine2D
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from tuning.pareto import pareto_front
from tuning.reference_curves import RANET_CURVES
from tuning.results import SweepResults, TrialResult, format_value

MIN_TRIALS_FOR_IMPORTANCES = 8
"""Minimum number of measured trials for parameter importances."""
_RELIABLE_TRIALS = 30  # with fewer, irrelevant parameters sometimes rank first
_LABELS_SHOWN = 14
_TIP_DOWN = MarkerStyle("v", transform=Affine2D().translate(0, 0.5))  # the tip at the point
_LOG_RATIO = 20.0  # positive values with a larger max/min ratio get a logarithmic axis


def plot_front(results: SweepResults) -> Figure | None:
    """Plot accuracy against mult-adds, with the Pareto front.

    Points far below the front would compress the axis, so they are triangles at the lower edge.

    Returns:
        None if no trial was measured.
    """
    points = results.points()
    if not points:
        return None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    indices = pareto_front([point[:2] for point in points], ("minimize", "maximize"))
    front = sorted({points[index][:2]: points[index][2] for index in reversed(indices)}.items())
    costs, top1s = zip(*((cost / 1e6, top1) for (cost, top1), _ in front), strict=True)
    published = RANET_CURVES.get(results.published, ())
    _scatter(axes, points, [*top1s, *(top1 for _, top1 in published)])
    axes.step(
        [*costs, max(cost / 1e6 for cost, *_ in points)], [*top1s, top1s[-1]],
        where="post", color="tab:orange", label="front, by trial number",
    )  # fmt: skip
    axes.scatter(costs, top1s, s=80, facecolors="none", edgecolors="tab:orange")
    for cost, top1, (_, result) in zip(costs, top1s, front, strict=True):
        axes.annotate(
            str(result.number), (cost, top1), xytext=(0, 7), textcoords="offset points",
            ha="center", color="tab:orange", fontsize=9,
        )  # fmt: skip
    if published:
        axes.plot(
            [cost / 1e6 for cost, _ in published], [top1 for _, top1 in published],
            color="tab:green", linestyle="--", marker="s", markersize=4,
            label=f"RANet of the paper, {results.published}, test images",
        )  # fmt: skip
    shown = [*costs, *(cost / 1e6 for cost, *_ in points), *(cost / 1e6 for cost, _ in published)]
    if max(shown) > _LOG_RATIO * min(shown):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(f"{results.name}: accuracy within a budget")
    axes.set_xlabel("mult-adds per image, mean (millions)")
    axes.set_ylabel("top-1 on held-out validation images (%)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def _scatter(
    axes: Axes, points: Sequence[tuple[float, float, TrialResult]], front: Sequence[float]
) -> None:
    """Plot points; triangles mark points below the lower edge."""
    bottom = math.floor(min(front) - max(10.0, 2 * (max(front) - min(front))))
    for state, color, face in (("finished", "tab:blue", "tab:blue"), ("stopped", "gray", "none")):
        for is_below in (False, True):
            some = [
                (cost / 1e6, max(top1, bottom))
                for cost, top1, result in points
                if result.state == state and (top1 < bottom) == is_below
            ]
            if some:
                label = "a trial at a budget" + (", stopped early" if state == "stopped" else "")
                axes.scatter(
                    *zip(*some, strict=True),
                    s=40 if is_below else 28, marker=_TIP_DOWN if is_below else "o",
                    facecolors=face, edgecolors=color, alpha=0.7,
                    label=f"{label}, below {bottom} %" if is_below else label,
                )  # fmt: skip
    below = Counter(cost / 1e6 for cost, top1, _ in points if top1 < bottom)
    for cost, count in below.items():
        if count > 1:
            axes.annotate(
                f"{count} x", (cost, bottom), xytext=(0, 9), textcoords="offset points",
                ha="center", color="gray", fontsize=8,
            )  # fmt: skip
    if below:
        axes.set_ylim(bottom, max(front) + 0.12 * (max(front) - bottom))
    else:
        axes.margins(y=0.12)


def plot_parallel(results: SweepResults) -> Figure | None:
    """Plot every trial as a line over its parameters and objectives.

    Returns:
        None if no trial was measured.
    """
    if not results.ranking:
        return None
    columns = results.columns()
    for index, name in enumerate(results.objectives):
        columns[name] = [result.values[index] for result in results.ranking]
    columns["last exit, M"] = [result.cost[-1] / 1e6 for result in results.ranking]
    scales = [_scale(values) for values in columns.values()]
    figure = Figure(figsize=(max(6.0, 1.35 * len(columns)), 5.5), layout="constrained")
    axes = figure.subplots()
    heights = [
        [scale.height(value, index / len(values)) for index, value in enumerate(values)]
        for scale, values in zip(scales, columns.values(), strict=True)
    ]
    scores = [result.values[0] for result in results.ranking]
    best_is_low = results.directions[0] == "minimize"
    colors = colormaps["viridis_r" if best_is_low else "viridis"]
    # The color scale starts at the lowest decile, so that few bad trials do not use most of it.
    rising = sorted(scores, reverse=best_is_low)
    low, high = sorted((rising[len(rising) // 10], rising[-1]))
    limits = Normalize(low, high)
    for index in reversed(range(len(scores))):  # the best trial last, on top
        axes.plot(
            range(len(columns)), [column[index] for column in heights],
            color=colors(limits(scores[index])), alpha=1.0 if index == 0 else 0.6,
            linewidth=2.8 if index == 0 else 1.2, clip_on=False,
        )  # fmt: skip
    for x, scale in enumerate(scales):
        axes.axvline(x, color="black", linewidth=0.8)
        for value, text in scale.ticks():
            axes.annotate(
                text, (x, scale.height(value)), xytext=(3, 0), textcoords="offset points",
                fontsize=8, va="center",
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
    axes.set_xticks(range(len(columns)), list(columns), rotation=30, ha="right", fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(0, len(columns) - 0.6)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(f"{results.name}: {len(scores)} trials by {results.objectives[0]}, best thick")
    return figure


@dataclass(frozen=True)
class _Scale:
    """Scale of an axis: maps values to heights from 0 to 1."""

    values: tuple[Any, ...]
    """Min and max of numbers; otherwise every value, bottom first."""
    kind: str
    """linear, log or names."""

    def height(self, value: Any, rank: float = 0.5) -> float:
        """Return the height of a value, nan for a missing one."""
        if value is None:
            return math.nan
        if self.kind == "names":
            return (self.values.index(value) + 0.7 - 0.4 * rank) / len(self.values)
        low, high, value = (
            (math.log(each) if self.kind == "log" else each) for each in (*self.values, value)
        )
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[Any, str]]:
        """Return the values of the tick labels, and their text."""
        if self.kind == "names":
            step = -(-len(self.values) // _LABELS_SHOWN)
            return [(value, format_value(value)) for value in self.values[::step]]
        low, high = self.values
        shares = [0.0, 0.25, 0.5, 0.75, 1.0] if high > low else [0.0]
        if self.kind == "log":
            values = [low * (high / low) ** share for share in shares]
        else:
            values = [low + (high - low) * share for share in shares]
        if isinstance(low, int):
            values = sorted({round(value) for value in values})
        return [(value, f"{value:.3g}") for value in values]


def _scale(values: Sequence[Any]) -> _Scale:
    given = [value for value in values if value is not None]
    if not all(_is_number(value) for value in given) or len(set(given)) <= 2:
        return _Scale(tuple(sorted(set(given), key=lambda each: (str(type(each)), each))), "names")
    low, high = min(given), max(given)
    return _Scale((low, high), "log" if low > 0 and high > _LOG_RATIO * low else "linear")


def plot_importances(results: SweepResults) -> Figure | None:
    """Plot the importance of each parameter for each objective, estimated by fANOVA.

    Returns:
        None if there are no importances.
    """
    found = importances(results)
    if not found:
        return None
    names = list(reversed(next(iter(found.values()))))
    figure = Figure(figsize=(8, 1.4 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(found)
    for index, (objective, shares) in enumerate(found.items()):
        offset = (len(found) - 1) / 2 - index
        bars = axes.barh(
            [y + offset * height for y in range(len(names))],
            [100 * shares[name] for name in names], height=height, label=objective,
        )  # fmt: skip
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("share of the variance between trials, % (fANOVA)")
    axes.margins(x=0.08)
    trust = "" if len(results.ranking) >= _RELIABLE_TRIALS else ", too few to be reliable"
    axes.set_title(f"{results.name}: importances, from {len(results.ranking)} trials{trust}")
    if len(found) > 1:
        axes.legend()
    return figure


def importances(results: SweepResults) -> dict[str, dict[str, float]]:
    """Estimate each parameter's share of the variance of each objective.

    Only parameters that all measured trials have are included, lists of numbers entry by entry.
    Trials that were stopped early count with their last objectives.

    Returns:
        Shares by objective and parameter, most important for the first objective first; empty with
        fewer than `MIN_TRIALS_FOR_IMPORTANCES` measured trials.
    """
    measured = results.ranking
    columns = {name: values for name, values in results.columns().items() if None not in values}
    if len(measured) < MIN_TRIALS_FOR_IMPORTANCES or not columns:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(values) for name, values in columns.items()}
    study = optuna.create_study(directions=list(results.directions))
    for index, result in enumerate(measured):
        params = {name: _to_optuna(values[index]) for name, values in columns.items()}
        study.add_trial(
            create_trial(params=params, distributions=distributions, values=list(result.values))
        )
    found = {}
    for index, objective in enumerate(results.objectives):
        if len({result.values[index] for result in measured}) > 1:
            found[objective] = get_param_importances(
                study,
                evaluator=FanovaImportanceEvaluator(seed=0),
                target=lambda trial, index=index: trial.values[index],
            )
    order = sorted(columns, key=lambda name: -next(iter(found.values()))[name]) if found else []
    return {
        objective: {name: float(shares[name]) for name in order}
        for objective, shares in found.items()
    }


def _distribution(values: Sequence[Any]) -> BaseDistribution:
    scale = _scale(values)
    if scale.kind == "names":
        return CategoricalDistribution([_to_optuna(value) for value in scale.values])
    return FloatDistribution(*map(float, scale.values), log=scale.kind == "log")


def _to_optuna(value: Any) -> Any:
    """Convert a value for Optuna: sequences to text."""
    return format_value(value) if isinstance(value, tuple) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
