"""Candidates, results and sweeps for tests."""

from typing import Any

from pipelines.run import Run
from tuning.config import Dimension, Sweep
from tuning.objective import Objective
from tuning.results import TrialEnd, TrialResult
from tuning.sampler import Candidate, Sampler
from tuning.trial_store import TrialConfig

BASE = Run(name="base")
COSTS = (100, 200, 400)


def accept(params) -> Candidate[Any]:
    return Candidate(run=None, params=params, settings=params, cost=COSTS)


def make_sampler(
    space, check=accept, *, method: Any = "random", objective=None, seed=0, num_trials=40
):
    return Sampler(
        space, method=method, objective=objective or Objective(), num_trials=num_trials,
        seed=seed, check=check,
    )  # fmt: skip


def result_of(params, objectives, state: Any = "finished", number=1, epochs=3) -> TrialResult:
    return TrialResult(
        number=number, trial_id=str(number), run_id="", params=params, state=state, epochs=epochs,
        seconds=1.0, cost=COSTS, parameters=1, memory_bytes=1, values=objectives,
    )  # fmt: skip


def end_of(objectives, number=1) -> TrialEnd:
    return TrialEnd(
        trial_id=str(number), state="finished", epochs=3, seconds=1.0, values=objectives
    )


def sweep_of(space=None, **settings) -> Sweep:
    return Sweep(space=space or {"train.seed": Dimension(choice=(1,))}, **settings)


def make_config(candidate, name) -> TrialConfig[Any]:
    return TrialConfig(run=name, settings={"x": "1"}, config_text="", parameters=1, memory_bytes=1)
