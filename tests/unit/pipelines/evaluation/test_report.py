"""Tables and plot of an evaluation."""

import numpy as np

from pipelines.evaluation.budgets import Evaluation
from pipelines.evaluation.report import format_tables, plot_curve


def test_tables_contain_every_exit_and_every_reported_budget(evaluation: Evaluation):
    exits, budgets = format_tables(evaluation).split("\n\n")
    assert [line.split() for line in exits.splitlines()[1:]] == [
        ["1", "0.00", "M", "25.00", "50.00"],
        ["2", "0.00", "M", "75.00", "100.00"],
    ]
    assert budgets.splitlines()[2].split() == ["0.67", "0.00", "M", "50.00", "25.0", "75.0"]


def test_plot_shows_anytime_and_budgeted_accuracy_against_mult_adds(evaluation: Evaluation):
    axes = plot_curve(evaluation, "a title").axes[0]
    budgeted, anytime = axes.get_lines()
    assert np.asarray(anytime.get_xydata()).tolist() == [[10e-6, 25], [30e-6, 75]]
    assert len(np.asarray(budgeted.get_xydata())) == len(evaluation.curve)
    assert axes.get_title() == "a title"
    assert "mult-adds" in axes.get_xlabel()
    assert "top-1" in axes.get_ylabel()
    assert [text.get_text() for text in axes.texts] == ["1", "2", "25.00 %", "75.00 %"]
