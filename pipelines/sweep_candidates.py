"""Candidates of a sweep: build, check and price their runs before training."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cluster.cli import parse_settings
from pipelines.data.config import SOURCE_SETTINGS, prepared_settings
from pipelines.run import EvaluationConfig, Run, config_text, flatten
from ranet import mult_adds
from ranet.training.footprint import Footprint, footprint
from tuning.config import RejectedError, Sweep
from tuning.sampler import Candidate
from tuning.space import (
    SHORTHANDS,
    as_arguments,
    expand_model,
    expand_weights,
    names_in,
)
from tuning.trial_store import TrialConfig

_WEIGHTS = "train.loss.exit_weights"


def check_space(sweep: Sweep, base: Run) -> None:
    """Check that a space sets only network and training settings.

    Args:
        sweep: the sweep with the space.
        base: the run that all trials start from.

    Raises:
        ValueError: an entry of the space is not allowed.
    """
    known, prepared = flatten(base), prepared_settings(base.data, base.model.image_size)
    for name in sorted(names_in(sweep.space).difference(SHORTHANDS)):
        if name not in known:
            similar = difflib.get_close_matches(name, [*known, *SHORTHANDS], n=1)
            hint = f"did you mean {similar[0]}?" if similar else "see pipelines/train.py --help"
            raise ValueError(f"space has {name}, which is not a setting; {hint}")
        if name in prepared or name in SOURCE_SETTINGS:
            raise ValueError(
                f"space has {name}: all trials of a sweep use the same prepared images; remove it"
            )
        if name == "train.epochs" or not name.startswith(("model.", "train.", "data.")):
            raise ValueError(
                f"space has {name}: it is the same for all trials of a sweep; set it in overrides"
            )


def check_candidate(sweep: Sweep, base: Run, params: Mapping[str, Any]) -> Candidate[Run]:
    """Build and check the candidate of some parameters.

    Cheap checks come first: network constraints, cost limits, then the full configuration parser.

    Args:
        sweep: the sweep with its cost limits and objective.
        base: the run that all trials start from.
        params: values by the names of the space.

    Raises:
        RejectedError: the candidate cannot be trained, or exceeds the cost limits.
    """
    settings = expand_model(params, base.model.scales)
    shape = {k.removeprefix("model."): v for k, v in settings.items() if k.startswith("model.")}
    try:
        cost = mult_adds(replace(base.model, **shape))
    except ValueError as error:
        raise RejectedError(_bound(error), str(error)) from None
    except TypeError:  # an unknown field or a wrong type: the parser names it
        cost = mult_adds(_parse(base, settings).model)
    sweep.cost_limits.check("mult_adds", cost[-1])
    sweep.cost_limits.check("first_exit_mult_adds", cost[0])
    if cost[0] > sweep.objective.min_budget_mult_adds:
        raise RejectedError(
            "objective.budgets_mult_adds",
            f"the smallest budget of the objective is {sweep.objective.min_budget_mult_adds:.4g} "
            f"mult-adds, but the first exit of a candidate costs {cost[0]:.4g}",
        )
    if (weights := expand_weights(params, cost)) is not None:
        settings[_WEIGHTS] = weights if set(weights) != {1.0} else []
    run = _parse(base, settings)
    if sweep.cost_limits.parameters is not None or sweep.cost_limits.memory_bytes is not None:
        size = _footprint(run)
        sweep.cost_limits.check("parameters", size.parameters)
        sweep.cost_limits.check("memory_bytes", size.memory)
    before = flatten(base)
    changed = {name: value for name, value in flatten(run).items() if value != before[name]}
    return Candidate(run=run, params=params, settings=changed, cost=cost)


def trial_config(candidate: Candidate[Run], name: str) -> TrialConfig[Run]:
    """Return the run of a candidate under the name of its trial."""
    run = replace(candidate.run, name=name)
    size = _footprint(run)
    return TrialConfig(
        run=run,
        settings=flatten(run),
        config_text=config_text(run),
        parameters=size.parameters,
        memory_bytes=size.memory,
    )


def best_config(candidate: Candidate[Run], name: str, budget: float | None) -> str:
    """Return the YAML config of a candidate for `pipelines/train.py`.

    Args:
        candidate: candidate of a trial.
        name: name of the run.
        budget: budget in mult-adds per image to add to the run's evaluation; None: the cost of the
            last exit.
    """
    run, cost = candidate.run, candidate.cost
    fractions = [each for each in run.evaluation.budget_fractions if each * cost[-1] >= cost[0]]
    fraction = 1.0 if budget is None else min(1.0, math.ceil(100 * budget / cost[-1]) / 100)
    evaluation = EvaluationConfig(budget_fractions=tuple(sorted({*fractions, fraction})))
    return config_text(replace(run, name=name, evaluation=evaluation))


def _parse(base: Run, settings: Mapping[str, Any]) -> Run:
    try:
        return parse_settings(Run, as_arguments({**flatten(base), **settings}))
    except ValueError as error:
        raise RejectedError(_bound(error), str(error)) from None


def _bound(error: ValueError) -> str:
    """Return the setting named at the start of an error."""
    return str(error).split()[0].rstrip(":")


def _footprint(run: Run) -> Footprint:
    share = math.ceil(run.train.batch_size / run.cluster.max_workers)
    return footprint(run.model, min(run.train.micro_batch_size or share, share))
