"""Store of a sweep's trials, kept as MLflow child runs."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, Literal, Self

from mlflow.entities import Run as MlflowRun

from cluster.tracking import runs
from cluster.tracking.record import TrackedRun
from ranet.protocols import Metrics
from tuning.results import TrialEnd, TrialResult
from tuning.sampler import Candidate, RunT

logger = logging.getLogger(__name__)

_NUMBER = "sweep.number"
_PARAMS = "sweep.params"
_RESULT = "sweep.result"
_REJECTED = "sweep.rejected"
_SECONDS = "sweep.seconds"
_END: Mapping[str, Literal["FINISHED", "KILLED", "FAILED"]] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
}
"""MLflow status of each state; only a trial that was stopped early has a tag sweep.result."""


@dataclass(frozen=True)
class Unfinished:
    """Unfinished trial of a previous invocation."""

    number: int
    params: Mapping[str, Any]
    run: MlflowRun


@dataclass(frozen=True)
class TrialConfig(Generic[RunT]):
    """Run of a trial, with what MLflow keeps of it."""

    run: RunT
    """The run to train, under the name of its trial."""
    settings: Mapping[str, str]
    """Settings of the run by dotted name."""
    config_text: str
    """Configuration of the run as YAML."""
    parameters: int
    """Number of parameters of the network."""
    memory_bytes: int
    """Estimated bytes of a training step on one worker."""


class TrialStore(Generic[RunT]):
    """Store of a sweep's trials: one MLflow child run per trial.

    The store is a context manager: trials that are open on leaving it were interrupted, and are
    marked as killed. Requests without an awaited response are sent by a thread.

    Args:
        parent: MLflow run of the sweep.
        configure: returns the run of a candidate under a name.
    """

    def __init__(
        self, parent: TrackedRun, configure: Callable[[Candidate[RunT], str], TrialConfig[RunT]]
    ) -> None:
        self._parent = parent
        self._configure = configure
        self._open: dict[int, tuple[TrackedRun, Candidate[RunT], TrialConfig[RunT]]] = {}
        self._sender = ThreadPoolExecutor(1, "mlflow-trials")
        self.results: list[TrialResult] = []
        """Results of ended trials, those of previous invocations first."""
        self.unfinished: list[Unfinished] = []
        """Unfinished trials of previous invocations."""
        self.rejected: dict[str, int] = {}
        """Number of candidates rejected by previous invocations, by bound."""
        self._began = time.monotonic()
        if parent.resumed:
            self.results, self.unfinished = read_trials(parent.uri, parent.run_id)
            for (
                result
            ) in self.results:  # the driver may have been killed between writing result and status
                runs.close_child(replace(parent, run_id=result.run_id), _END[result.state])
            tags = parent.client.get_run(parent.run_id).data.tags
            self.rejected = json.loads(tags.get(_REJECTED, "{}"))
            self._began -= float(tags.get(_SECONDS, "0"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for record, _, _ in self._open.values():
            self._send(runs.close_child, record, "KILLED")
        self.note_seconds()
        self._sender.shutdown(wait=True)

    @property
    def uri(self) -> str:
        """MLflow tracking URI."""
        return self._parent.uri

    @property
    def seconds(self) -> float:
        """Time of the sweep so far in seconds, including previous invocations."""
        return time.monotonic() - self._began

    @property
    def num_opened(self) -> int:
        """Highest number of a trial so far; 0 without trials."""
        numbers = [each.number for each in (*self.results, *self.unfinished)]
        return max((*numbers, *self._open), default=0)

    def open(
        self, number: int, candidate: Candidate[RunT], before: Unfinished | None = None
    ) -> tuple[TrackedRun, RunT]:
        """Open the MLflow run of a trial, or reopen it.

        Args:
            number: number of the trial.
            candidate: candidate to train.
            before: the trial of a previous invocation to resume; None for a new trial.

        Returns:
            The MLflow run, and the run to train.
        """
        name = f"{self._parent.name}-{self._parent.attempt}-{number:04d}"
        config = self._configure(candidate, name)
        if before is not None:
            record = runs.reopen_child(self._parent, before.run, parameters=config.settings)
        else:
            record = runs.open_child(
                self._parent,
                name,
                parameters=config.settings,
                tags={_NUMBER: str(number), _PARAMS: json.dumps(candidate.params)},
            )
        self._open[number] = record, candidate, config
        self._send(record.client.log_text, record.run_id, config.config_text, "config.yaml")
        return record, config.run

    def note_rejected(self, counts: Mapping[str, int]) -> None:
        """Save the number of rejected candidates of all invocations, by bound."""
        self._send(
            self._parent.client.set_tag, self._parent.run_id, _REJECTED, json.dumps(dict(counts))
        )

    def note_seconds(self) -> None:
        """Save the time of the sweep so far."""
        self._send(
            self._parent.client.set_tag, self._parent.run_id, _SECONDS, f"{self.seconds:.1f}"
        )

    def close(self, number: int, end: TrialEnd, history: Sequence[Metrics] = ()) -> None:
        """Save the result of a trial and close its MLflow run.

        Args:
            number: number of the trial.
            end: end of the trial.
            history: metrics of the epochs that the driver knows; the last ones of a stopped trial
                may be missing in MLflow.
        """
        record, candidate, config = self._open.pop(number)
        result = TrialResult(
            **vars(end),
            number=number,
            run_id=record.run_id,
            params=candidate.params,
            cost=candidate.cost,
            parameters=config.parameters,
            memory_bytes=config.memory_bytes,
        )
        self.results.append(result)
        self._send(record.log_history, history)
        self._send(record.client.set_tag, record.run_id, _RESULT, json.dumps(asdict(result)))
        self._send(runs.close_child, record, _END[result.state])

    def close_lost(self, number: int) -> None:
        """Close the run of a lost trial, to be resumed later."""
        record, _, _ = self._open.pop(number)
        self._send(runs.close_child, record, "FAILED")

    def _send(self, action: Callable[..., Any], *arguments: Any) -> None:
        def send() -> None:
            try:
                action(*arguments)
            except Exception as error:
                logger.warning("could not log the state of a trial to MLflow: %s", error)

        self._sender.submit(send)


def read_trials(uri: str, run_id: str) -> tuple[list[TrialResult], list[Unfinished]]:
    """Read the ended and unfinished trials of a sweep by number.

    If MLflow failed while a trial was opened, the trial has several child runs: the last one
    counts.

    Args:
        uri: MLflow tracking URI.
        run_id: ID of the sweep's MLflow run.
    """
    ended: dict[int, TrialResult] = {}
    others: dict[int, Unfinished] = {}
    for run in runs.children(uri, run_id):
        tags = run.data.tags
        number = int(tags[_NUMBER])
        if _RESULT in tags:
            values = json.loads(tags[_RESULT])
            lists = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
            ended[number] = TrialResult(**(values | lists))
        else:
            others[number] = Unfinished(number, json.loads(tags[_PARAMS]), run)
    left = sorted(others.keys() - ended.keys())
    return [ended[number] for number in sorted(ended)], [others[number] for number in left]
