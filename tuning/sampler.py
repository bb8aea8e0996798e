"""Sample hyperparameters with Optuna; reject invalid ones before training; never repeat one."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

from tuning.config import Dimension, RejectedError
from tuning.objective import Objective
from tuning.results import TrialResult

logger = logging.getLogger(__name__)

RunT = TypeVar("RunT")
"""Configuration of a run; a sweep passes it from the candidate to the training function."""

MAX_CANDIDATES = 300
"""Candidates sampled for one trial, after which the space counts as exhausted."""
MAX_PROPOSED = 30
"""Candidates for one trial that the configured sampler proposes; the others are random, because
its proposals may all be rejected or have been tried already."""
_COST_BOUNDS = ("cost_limits.", "objective.")
"""Prefixes of the bounds that reject valid networks; other bounds reject invalid ones."""
MAX_CHECKED_AHEAD = 20
"""Maximum number of trials for which candidates are searched before a sweep starts."""


@dataclass(frozen=True, kw_only=True)
class Candidate(Generic[RunT]):
    """Sampled hyperparameters that can be trained."""

    run: RunT
    """The run to train, without a name of its own yet."""
    params: Mapping[str, Any]
    """Values by the names of the space."""
    settings: Mapping[str, Any]
    """Settings in which `run` differs from the run that all trials start from."""
    cost: tuple[int, ...]
    """Cumulative mult-adds of every exit."""

    @property
    def key(self) -> str:
        """The settings as text: equal for two candidates that train the same."""
        return json.dumps(self.settings, sort_keys=True)


class SpaceExhaustedError(ValueError):
    """The search space has no further candidate."""


class Sampler(Generic[RunT]):
    """Sampler of candidates, with the Optuna study of their results."""

    def __init__(
        self,
        space: Mapping[str, Dimension],
        *,
        method: Literal["tpe", "random"],
        objective: Objective,
        num_trials: int,
        seed: int,
        check: Callable[[Mapping[str, Any]], Candidate[RunT]],
    ) -> None:
        """Create an empty study.

        Args:
            space: distributions by dotted name.
            method: Optuna's sampler.
            objective: metrics that are reported, and their directions.
            num_trials: total number of trials; TPE samples the first part of them at random.
            seed: random seed.
            check: returns the candidate of some parameters, or raises `RejectedError`.
        """
        self.rejected: Counter[str] = Counter()
        """Number of rejected candidates by the bound that rejected them."""
        self._space = dict(space)
        self._distributions = _distributions(space)
        self._check = check
        self._taken: set[str] = set()
        self._pending: dict[int, optuna.Trial] = {}
        self._reasons: dict[str, str] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._proposer: optuna.samplers.BaseSampler = self._random
        if method == "tpe":
            self._proposer = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=min(10, max(4, num_trials // 4))
            )
        self._study = optuna.create_study(
            directions=list(objective.directions), sampler=self._proposer
        )

    def check_ahead(self, num_trials: int) -> None:
        """Check that the space has enough candidates, without using any of them.

        Args:
            num_trials: number of different candidates to find, at most `MAX_CHECKED_AHEAD`.

        Raises:
            SpaceExhaustedError: the space has fewer candidates.
        """
        taken, rejected = set(self._taken), self.rejected.copy()
        try:
            for _ in range(min(num_trials, MAX_CHECKED_AHEAD)):
                candidate, trial = self._sample(propose=False)
                self._taken.add(candidate.key)
                self._study.tell(trial, state=TrialState.FAIL)
        finally:
            self._taken, self.rejected = taken, rejected

    def reseed(self) -> None:
        """Continue with random numbers that no previous invocation used."""
        for sampler in (self._random, self._proposer):
            sampler.reseed_rng()

    def next(self) -> tuple[Candidate[RunT], int]:
        """Sample a new candidate.

        Returns:
            The candidate and its number for `tell`.

        Raises:
            SpaceExhaustedError: no candidate was found.
        """
        candidate, trial = self._sample(propose=True)
        return candidate, self._register(candidate, trial)

    def resume(self, params: Mapping[str, Any]) -> tuple[Candidate[RunT], int]:
        """Return the candidate of a trial that a previous invocation left unfinished.

        Raises:
            RejectedError: the candidate can no longer be trained.
        """
        candidate = self._check(params)
        optuna_params = self._to_optuna(params)
        assert optuna_params is not None, "a resumed sweep has the same space"
        self._study.enqueue_trial(optuna_params)
        return candidate, self._register(candidate, self._study.ask(self._distributions))

    def tell(
        self, number: int, state: TrialState, values: Sequence[float] = (), epochs: int = 0
    ) -> None:
        """Report the end of a candidate's trial.

        Args:
            number: number of the candidate, as returned by `next`.
            state: COMPLETE, PRUNED for a trial that was stopped early, or FAIL.
            values: objectives; the latest ones of a pruned trial; empty for a failed one.
            epochs: epochs trained.
        """
        is_single = len(self._study.directions) == 1
        trial = self._pending.pop(number)
        if state == TrialState.COMPLETE:
            self._study.tell(trial, list(values))
            return
        if state == TrialState.PRUNED and is_single and values:
            trial.report(values[0], epochs)  # TPE ranks pruned trials by epochs, then by value
        self._study.tell(trial, state=state)

    def learn(self, result: TrialResult) -> bool:
        """Add an ended trial to the study, if the space contains it."""
        optuna_params = self._to_optuna(result.params)
        if optuna_params is None:
            return False
        try:
            self._taken.add(self._check(result.params).key)
        except RejectedError:
            return False
        if result.state == "failed" or not result.values:
            return True
        is_single = len(self._study.directions) == 1
        is_pruned = result.state == "stopped" and is_single
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if is_pruned else TrialState.COMPLETE,
                values=None if is_pruned else list(result.values),
                params=optuna_params,
                distributions=self._distributions,
                intermediate_values={result.epochs: result.values[0]} if is_pruned else None,
            )
        )
        return True

    def reasons(self) -> str:
        """Summarize the rejections: counts by bound, and the most frequent bound's message."""
        if not self.rejected:
            return "no candidate was rejected, but all had been tried before"
        counts = ", ".join(f"{bound} {count}" for bound, count in self.rejected.most_common())
        most = self.rejected.most_common(1)[0][0]
        reasons = f"rejected by {counts}; most by {most}: {self._reasons[most]}"
        bounds = [name for name, _ in self.rejected.most_common() if name.startswith(_COST_BOUNDS)]
        if bounds and bounds[0] != most and not self._taken:
            reasons += f"; of the valid networks, all by {' and '.join(bounds)}: "
            reasons += self._reasons[bounds[0]]
        return reasons

    def _register(self, candidate: Candidate[RunT], trial: optuna.Trial) -> int:
        self._taken.add(candidate.key)
        self._pending[trial.number] = trial
        return trial.number

    def _sample(self, *, propose: bool) -> tuple[Candidate[RunT], optuna.Trial]:
        num_known = len(self._taken)
        for attempt in range(MAX_CANDIDATES):
            is_proposed = propose and attempt < MAX_PROPOSED
            self._study.sampler = self._proposer if is_proposed else self._random
            trial = self._study.ask(self._distributions)
            try:
                candidate = self._check(self._from_optuna(trial.params))
            except RejectedError as error:
                self.rejected[error.bound] += 1
                self._reasons[error.bound] = str(error)
            else:
                if candidate.key not in self._taken:
                    return candidate, trial
            self._study.tell(trial, state=TrialState.FAIL)
        raise SpaceExhaustedError(
            f"space has only {num_known} different candidates that can be trained, and "
            f"{MAX_CANDIDATES} more samples gave no other: widen space or cost_limits, or lower "
            f"num_trials; {self.reasons()}"
        )

    def _from_optuna(self, optuna_params: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters by the space's names, reals to three digits."""
        params: dict[str, Any] = {}
        for name, dimension in self._space.items():
            values = [_value(dimension, optuna_params[key]) for key in _keys(name, dimension)]
            params[name] = values[0] if dimension.length is None else values
        return params

    def _to_optuna(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return Optuna's parameters; None if the space does not contain `params`."""
        if set(params) != set(self._space):
            return None
        optuna_params: dict[str, Any] = {}
        for name, dimension in self._space.items():
            values = [params[name]] if dimension.length is None else params[name]
            keys = _keys(name, dimension)
            if not isinstance(values, list) or len(values) != len(keys):
                return None
            for key, value in zip(keys, values, strict=True):
                if dimension.choice:
                    choices = [json.dumps(choice) for choice in dimension.choice]
                    if json.dumps(value) not in choices:
                        return None
                    optuna_params[key] = choices.index(json.dumps(value))
                else:
                    distribution = self._distributions[key]
                    assert isinstance(distribution, FloatDistribution | IntDistribution)
                    if not isinstance(value, int | float) or not (
                        distribution.low <= value <= distribution.high
                    ):
                        return None
                    optuna_params[key] = value
        return optuna_params


def _keys(name: str, dimension: Dimension) -> list[str]:
    if dimension.length is None:
        return [name]
    return [f"{name}.{k + 1}" for k in range(dimension.length)]


def _distributions(space: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    distributions: dict[str, BaseDistribution] = {}
    for name, dimension in space.items():
        if dimension.choice:
            # By index, because Optuna accepts neither lists nor mappings as choices.
            distribution = CategoricalDistribution(range(len(dimension.choice)))
        elif dimension.integers is not None:
            distribution = IntDistribution(*dimension.integers)
        elif dimension.uniform is not None:
            distribution = FloatDistribution(*dimension.uniform)
        else:
            assert dimension.log_uniform is not None
            distribution = FloatDistribution(*dimension.log_uniform, log=True)
        for key in _keys(name, dimension):
            distributions[key] = distribution
    return distributions


def _value(dimension: Dimension, optuna_param: Any) -> Any:
    if dimension.choice:
        return json.loads(json.dumps(dimension.choice[optuna_param]))
    if dimension.integers is not None:
        return int(optuna_param)
    bounds = dimension.uniform or dimension.log_uniform
    assert bounds is not None
    return min(max(float(f"{optuna_param:.3g}"), bounds[0]), bounds[1])
