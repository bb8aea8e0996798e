"""The simulation of spot losses, held against what is known without it."""

from argparse import Namespace

import pytest

from benchmarks.spot import best, daly, useful_share, young


def given(**changes):
    usual = {"losses": 1.0, "write": 10.0, "restart": 30.0, "replace": 300.0, "days": 60.0}
    return Namespace(patient=False, **usual | changes)


def test_without_losses_only_writing_costs():
    assert useful_share(8, 90.0, given(losses=1e-9)) == pytest.approx(0.9, abs=0.001)


def test_with_free_checkpoints_each_loss_costs_its_restarts_and_the_missing_machine():
    # 8 losses a day: 2 restarts of 30 s each, and an eighth of the machines for 270 s of work
    lost = 8 * (2 * 30 + 270 / 8) / 86400
    share = useful_share(8, 1.0, given(write=0.0, days=400.0))
    assert share == pytest.approx(1 - lost, abs=0.002)


def test_the_optimum_is_near_youngs():
    settings = given(days=200.0)
    assert best(8, settings) == pytest.approx(young(8, settings), rel=0.5)
    at_young = useful_share(8, young(8, settings), settings)
    assert at_young > useful_share(8, young(8, settings) / 6, settings)
    assert at_young > useful_share(8, young(8, settings) * 6, settings)
    found = useful_share(8, best(8, settings), settings)
    for formula in (young, daly):
        assert found - 0.02 < useful_share(8, formula(8, settings), settings) <= found


def test_dalys_formula_is_youngs_less_the_write_where_losses_are_rare():
    rare = given(write=5.0)
    assert daly(1, rare) == pytest.approx(young(1, rare) - 5.0, rel=0.1)
    assert daly(1, rare) > young(1, rare) - 5.0  # of higher order


def test_growing_at_a_checkpoint_alone_saves_the_work_between():
    at_once, patient = given(days=200.0), given(days=200.0)
    patient.patient = True
    assert useful_share(64, 480.0, patient) > useful_share(64, 480.0, at_once) + 0.05
