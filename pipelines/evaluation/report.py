"""Tables and plot of an evaluation: accuracy against mult-adds."""

from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import in_submitted_job
from pipelines.evaluation.budgets import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIN_POINTS_SHOWN = 3.0


def format_tables(evaluation: Evaluation) -> str:
    """Format two tables of test accuracy: by exit and by budget."""
    lines = ["exit   mult-adds   top-1 %   top-5 %"]
    lines += [
        f"{number:4d}  {row.mult_adds / 1e6:8.2f} M  {row.test_top1:8.2f}  {row.test_top5:8.2f}"
        for number, row in enumerate(evaluation.exits, start=1)
    ]
    lines += ["", "budget   mult-adds   top-1 %   % of the images leaving at exit 1, 2, ..."]
    lines += [
        f"{row.budget_fraction:6.2f}  {row.test_mult_adds / 1e6:8.2f} M  {row.test_top1:8.2f}   "
        + " ".join(f"{share:5.1f}" for share in row.exit_shares)
        for row in evaluation.reported
    ]
    if evaluation.exit_ensemble == "mean_logits":
        lines += [
            "",
            "every prediction averages the logits of all exits passed: better on the validation "
            "images",
        ]
    return "\n".join(lines)


def plot_curve(evaluation: Evaluation, title: str) -> "Figure":
    """Plot test top-1 accuracy against mult-adds: each exit and every budget."""
    from matplotlib.figure import Figure  # imported here: it takes half a second

    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.subplots()
    costs = [row.mult_adds / 1e6 for row in evaluation.exits]
    top1 = [row.test_top1 for row in evaluation.exits]
    # On the test images a larger budget may cost less: thresholds are fitted on other images.
    points = sorted((row.test_mult_adds / 1e6, row.test_top1) for row in evaluation.curve)
    axes.plot(
        *zip(*points, strict=True),
        color="tab:blue",
        marker=".",
        label="budgeted batch: each image leaves at sufficient confidence",
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
    # A single image must not look like a step where all exits are about equally accurate.
    bottom, top = axes.get_ylim()
    missing = max(0.0, _MIN_POINTS_SHOWN - (top - bottom))
    axes.set_ylim(bottom - 0.8 * missing, top + 0.2 * missing)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return figure


def curve_line(plot: Path) -> str:
    """Return a line with the location of the plot.

    The folder of a submitted job is deleted: there it names the MLflow artifact.
    """
    place = f"evaluation/{plot.name} of the MLflow run" if in_submitted_job() else plot
    return f"curve       {place}"
