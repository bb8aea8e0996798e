"""Results of sweeps for tests."""

import yaml

from tuning.results import SweepResults, TrialResult


def trial(number: int, *top1: float, top: float = 20e6, **other) -> TrialResult:
    """Return a trial of two exits with accuracies `top1` at three budgets."""
    return TrialResult(**{
        "number": number,
        "trial_id": f"id{number}",
        "run_id": f"run{number}",
        "params": {"model.growth_rate": 4 + number, "train.optim.lr": 0.1},
        "state": "finished",
        "epochs": 6,
        "seconds": 90.0,
        "cost": (int(top) // 5, int(top)),
        "parameters": 250_000,
        "memory_bytes": 10**8,
        "values": (sum(top1) / len(top1),) if top1 else (),
        "budgets": (5e6, 10e6, 20e6)[len(top1) and 3 - len(top1):][:len(top1)],
        "accuracies": top1,
        **other,
    })  # fmt: skip


def sweep_results(*results: TrialResult, **other) -> SweepResults:
    return SweepResults(**{
        "name": "digits-sweep",
        "objectives": ("accuracy",),
        "directions": ("maximize",),
        "budgets": (5e6, 10e6, 20e6),
        "trials": results,
        "rejected": {},
        "seconds": 4000.0,
        "devices": 2.0,
        "device": "CPU",
        **other,
    })  # fmt: skip


def config_of(result: TrialResult, name: str, budget: float | None) -> str:
    return yaml.safe_dump({"name": name, "trial": result.number, "budget": budget})


def several(*values: tuple[float, float]) -> SweepResults:
    """Return results of trials with accuracy and mult-adds as objectives."""
    results = [trial(k, values=pair) for k, pair in enumerate(values, start=1)]
    return sweep_results(
        *results, objectives=("accuracy", "mult_adds"), directions=("maximize", "minimize")
    )
