"""Model card: figures, texts and precision of a network."""

from dataclasses import replace

import torch

from pipelines.model_packaging.card import model_card
from tests.support.registered import tiny_saved


def test_card_has_every_exit_budget_and_statement():
    metadata = replace(tiny_saved().metadata, notes="A note.", licence="CC0")
    card = model_card(metadata, torch.float32)
    lines = card.splitlines()
    for number, row in enumerate(metadata.exits, start=1):
        assert f"| {number} | {row.mult_adds / 1e6:.2f} M | {row.val_top1:.2f} |" in card
    rows = [line for line in lines if line.startswith(tuple(f"| {digit}." for digit in "01"))]
    assert len(rows) == len(metadata.curve)
    assert f"| 0.750 | {dict(budgets(metadata))[0.75]:.2f} |" in card
    for text in ("A note.", "CC0", "Seed 0, commit " + "a" * 40, metadata.origin.command):
        assert text in card
    assert "| train | 1,000 | `4444444444444444` |" in lines
    assert "Each exit predicts from" in card
    assert "float16" not in card


def budgets(metadata):
    return [(row.budget_fraction, row.val_top1) for row in metadata.curve]


def test_card_names_the_precision_and_an_unknown_commit():
    metadata = tiny_saved().metadata
    card = model_card(replace(metadata, origin=replace(metadata.origin, commit="")), torch.float16)
    assert "The stored weights are float16" in card
    assert "commit unknown" in card
