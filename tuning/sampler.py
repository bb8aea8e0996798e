"""Draws of a sweep: proposed by Optuna, refused before they cost anything, never the same twice."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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

MAX_CANDIDATES = 300
"""Draws for one trial, after which the space counts as exhausted."""
MAX_PROPOSED = 30
"""The first of them are proposed by the search; what it proposes may be taken already or refused
again and again, so the others are left to chance."""
_ASKED = ("window.", "objective.")
"""What bounds of networks begin with; all others refuse what is no network."""
MAX_CHECKED_AHEAD = 20
"""Trials for which samples are looked for before a sweep starts."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A draw that can be trained."""

    run: Any
    """The run that it means, as yet without a name of its own."""
    draw: Mapping[str, Any]
    """Values by the names of the space."""
    settings: Mapping[str, Any]
    """What they change in the run that all trials start from."""
    cost: tuple[int, ...]
    """Cumulative mult-adds of every exit."""

    @property
    def key(self) -> str:
        """The settings as text: equal for two draws that mean the same."""
        return json.dumps(self.settings, sort_keys=True)


class SpaceExhaustedError(ValueError):
    """The space holds no further sample to train; the message says what is in the way."""


class Sampler:
    """Samples of a space, and what became of them."""

    def __init__(
        self,
        space: Mapping[str, Dimension],
        *,
        search: Literal["tpe", "random"],
        objective: Objective,
        num_trials: int,
        seed: int,
        check: Callable[[Mapping[str, Any]], Candidate],
    ) -> None:
        """Make an empty study.

        Args:
            space: distributions by dotted name.
            search: who proposes.
            objective: what is reported, and which way is better.
            num_trials: trials in all; a part of them is left to chance, to learn from.
            seed: seed of the draws.
            check: gives what a draw means, or raises `RejectedError`.
        """
        self.rejected: Counter[str] = Counter()
        """Draws that were refused, by the bound that did it."""
        self._space = dict(space)
        self._distributions = _distributions(space)
        self._check = check
        self._taken: set[str] = set()
        self._given: dict[int, optuna.Trial] = {}
        self._sentences: dict[str, str] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._chance = optuna.samplers.RandomSampler(seed=seed)
        self._proposer: optuna.samplers.BaseSampler = self._chance
        if search == "tpe":
            self._proposer = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=min(10, max(4, num_trials // 4))
            )
        self._study = optuna.create_study(
            directions=list(objective.directions), sampler=self._proposer
        )

    def check_ahead(self, num_trials: int) -> None:
        """Find different samples for so many trials, without giving them out.

        Raises:
            SpaceExhaustedError: there are not as many; the message names the bound that rejects most.
        """
        taken, rejected = set(self._taken), self.rejected.copy()
        try:
            for _ in range(min(num_trials, MAX_CHECKED_AHEAD)):
                candidate, trial = self._draw(propose=False)
                self._taken.add(candidate.key)
                self._study.tell(trial, state=TrialState.FAIL)
        finally:
            self._taken, self.rejected = taken, rejected

    def reseed(self) -> None:
        """Draw other samples than those that the same seed gave an earlier start."""
        for sampler in (self._chance, self._proposer):
            sampler.reseed_rng()

    def next(self) -> tuple[Candidate, int]:
        """Draw a new sample; give it with the number by which `tell` knows it.

        Raises:
            SpaceExhaustedError: none was found.
        """
        candidate, trial = self._draw(propose=True)
        return candidate, self._give(candidate, trial)

    def again(self, draw: Mapping[str, Any]) -> tuple[Candidate, int]:
        """Give out a sample of an earlier start, whose trial goes on.

        Raises:
            RejectedError: it cannot be trained any more.
        """
        candidate = self._check(draw)
        params = self._params(draw)
        assert params is not None, "a sweep that goes on has the space that it had"
        self._study.enqueue_trial(params)
        return candidate, self._give(candidate, self._study.ask(self._distributions))

    def tell(
        self, number: int, state: TrialState, values: Sequence[float] = (), epochs: int = 0
    ) -> None:
        """Say what became of a sample.

        Args:
            number: as `next` gave it.
            state: COMPLETE, PRUNED where it was given up early, FAIL.
            values: objectives, those so far of a pruned one; empty for a failed one.
            epochs: epochs trained.
        """
        single = len(self._study.directions) == 1
        trial = self._given.pop(number)
        if state == TrialState.COMPLETE:
            self._study.tell(trial, list(values))
            return
        if state == TrialState.PRUNED and single and values:
            trial.report(values[0], epochs)  # ranked by how far it came, then by this value
        self._study.tell(trial, state=state)

    def learn(self, result: TrialResult) -> bool:
        """Take over a trial that has ended already; say whether its sample lies in the space."""
        params = self._params(result.settings)
        if params is None:
            return False
        try:
            self._taken.add(self._check(result.settings).key)
        except RejectedError:
            return False
        if result.state == "failed" or not result.values:
            return True
        single = len(self._study.directions) == 1
        pruned = result.state == "stopped" and single
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                values=None if pruned else list(result.values),
                params=params,
                distributions=self._distributions,
                intermediate_values={result.epochs: result.values[0]} if pruned else None,
            )
        )
        return True

    def reasons(self) -> str:
        """Say what rejected how many draws, most first, and the fullest reason of the first."""
        if not self.rejected:
            return "nothing was refused, but all that was drawn had been drawn before"
        counts = ", ".join(f"{bound} {count}" for bound, count in self.rejected.most_common())
        most = self.rejected.most_common(1)[0][0]
        reasons = f"refused by {counts}; most by {most}: {self._sentences[most]}"
        asked = [name for name, _ in self.rejected.most_common() if name.startswith(_ASKED)]
        if asked and asked[0] != most and not self._taken:
            reasons += f"; of the networks, all by {' and '.join(asked)}: "
            reasons += self._sentences[asked[0]]
        return reasons

    def _give(self, candidate: Candidate, trial: optuna.Trial) -> int:
        self._taken.add(candidate.key)
        self._given[trial.number] = trial
        return trial.number

    def _draw(self, *, propose: bool) -> tuple[Candidate, optuna.Trial]:
        known = len(self._taken)
        for attempt in range(MAX_CANDIDATES):
            proposed = propose and attempt < MAX_PROPOSED
            self._study.sampler = self._proposer if proposed else self._chance
            trial = self._study.ask(self._distributions)
            try:
                candidate = self._check(self._values(trial.params))
            except RejectedError as error:
                self.rejected[error.bound] += 1
                self._sentences[error.bound] = str(error)
            else:
                if candidate.key not in self._taken:
                    return candidate, trial
            self._study.tell(trial, state=TrialState.FAIL)
        raise SpaceExhaustedError(
            f"space gave {known} different samples that can be trained, and in {MAX_CANDIDATES} more "
            f"draws no other: widen it or the window, or lower num_trials; {self.reasons()}"
        )

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return a draw by the names of the space; real numbers to three digits."""
        draw: dict[str, Any] = {}
        for name, dimension in self._space.items():
            values = [_value(dimension, params[key]) for key in _keys(name, dimension)]
            draw[name] = values[0] if dimension.length is None else values
        return draw

    def _params(self, draw: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return what Optuna calls a draw; nothing where the space does not hold it."""
        if set(draw) != set(self._space):
            return None
        params: dict[str, Any] = {}
        for name, dimension in self._space.items():
            values = [draw[name]] if dimension.length is None else draw[name]
            keys = _keys(name, dimension)
            if not isinstance(values, list) or len(values) != len(keys):
                return None
            for key, value in zip(keys, values, strict=True):
                if dimension.choice:
                    choices = [json.dumps(choice) for choice in dimension.choice]
                    if json.dumps(value) not in choices:
                        return None
                    params[key] = choices.index(json.dumps(value))
                else:
                    distribution = self._distributions[key]
                    assert isinstance(distribution, FloatDistribution | IntDistribution)
                    if not isinstance(value, int | float) or not (
                        distribution.low <= value <= distribution.high
                    ):
                        return None
                    params[key] = value
        return params


def _keys(name: str, dimension: Dimension) -> list[str]:
    if dimension.length is None:
        return [name]
    return [f"{name}.{k + 1}" for k in range(dimension.length)]


def _distributions(space: Mapping[str, Dimension]) -> dict[str, BaseDistribution]:
    distributions: dict[str, BaseDistribution] = {}
    for name, dimension in space.items():
        if dimension.choice:
            # By their places: Optuna knows no lists and mappings.
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


def _value(dimension: Dimension, param: Any) -> Any:
    if dimension.choice:
        return json.loads(json.dumps(dimension.choice[param]))
    if dimension.integers is not None:
        return int(param)
    bounds = dimension.uniform or dimension.log_uniform
    assert bounds is not None
    return min(max(float(f"{param:.3g}"), bounds[0]), bounds[1])
