"""Early stopping by Ray Tune's schedulers."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from tuning.config import EarlyStopping
from tuning.search import make_scheduler, replay

NOBODY: Any = None


def trial_of_tune(trial_id: str) -> Any:
    return SimpleNamespace(trial_id=trial_id)


def test_replayed_scheduler_stops_as_if_it_had_never_been_interrupted():
    def decision(*, replayed: bool):
        scheduler = make_scheduler(
            EarlyStopping(method="asha", first_epoch=1, factor=2), "m", "max", 4
        )
        for k in range(4):
            trial = trial_of_tune(f"earlier{k}")
            if replayed:
                scheduler.on_trial_add(NOBODY, trial)
                replay(scheduler, trial, "m", {1: 0.5 + k, 2: 0.6 + k})
        last = trial_of_tune("late")
        scheduler.on_trial_add(NOBODY, last)
        return scheduler.on_trial_result(NOBODY, last, {"epoch": 1, "m": 0.1})

    assert decision(replayed=True) == "STOP"
    assert decision(replayed=False) == "CONTINUE"


def test_trial_at_the_last_epoch_is_never_stopped_early():
    scheduler = make_scheduler(EarlyStopping(method="asha", first_epoch=1, factor=3), "m", "max", 3)
    for k, name in enumerate("abcd"):
        trial = trial_of_tune(name)
        scheduler.on_trial_add(NOBODY, trial)
        for epoch in (1, 2, 3):
            decision = scheduler.on_trial_result(NOBODY, trial, {"epoch": epoch, "m": float(-k)})
        assert decision == "CONTINUE"


def test_several_brackets_stop_bad_trials_at_different_epochs():
    np.random.seed(0)  # noqa: NPY002 - Tune assigns trials to brackets with it
    stopping = EarlyStopping(method="asha", first_epoch=1, factor=2, brackets=2)
    scheduler = make_scheduler(stopping, "m", "max", 8)

    def last_epoch(name: str, value: float) -> int:
        trial = trial_of_tune(name)
        scheduler.on_trial_add(NOBODY, trial)
        for epoch in range(1, 8):
            if scheduler.on_trial_result(NOBODY, trial, {"epoch": epoch, "m": value}) == "STOP":
                return epoch
        return 8

    assert {last_epoch(f"good{k}", 1.0 + k) for k in range(8)} == {8}
    assert {last_epoch(f"bad{k}", -1.0 - k) for k in range(8)} == {1, 2}
