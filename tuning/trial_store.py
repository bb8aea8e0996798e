"""The trials of a sweep in MLflow: the only memory of what was tried, and how it ended."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mlflow.entities import Run

from cluster.tracking import runs
from cluster.tracking.record import TrackedRun
from ranet.protocols import Metrics
from tuning.sampler import Candidate
from tuning.trial_result import TrialResult

logger = logging.getLogger(__name__)

_NUMBER = "sweep.number"
_DRAW = "sweep.draw"
_RESULT = "sweep.result"
_REJECTED = "sweep.rejected"
_SECONDS = "sweep.seconds"
_END: Mapping[str, Literal["FINISHED", "KILLED", "FAILED"]] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
}
"""MLflow's word for each end; the tag sweep.result tells a stopped trial from a killed one."""


@dataclass(frozen=True)
class Unfinished:
    """A trial of an earlier start that had not come to its end."""

    number: int
    draw: Mapping[str, Any]
    run: Run


@dataclass(frozen=True)
class TrialConfig:
    """A candidate under its own name."""

    run: Any
    """What is trained."""
    settings: Mapping[str, str]
    """Its settings by dotted name."""
    config_text: str
    """The whole configuration."""
    parameters: int
    """Weights of the network."""
    memory: int
    """Estimated bytes of a training step on one worker."""


class TrialStore:
    """Opens a child run for each trial, and closes it in its true state.

    A context: on leaving, trials that are still open were cut short, and are marked as killed.
    What MLflow need not answer at once is sent from a thread.

    Args:
        parent: the sweep's run.
        describe: gives a candidate the name of its trial.
    """

    def __init__(
        self, parent: TrackedRun, describe: Callable[[Candidate, str], TrialConfig]
    ) -> None:
        self._parent = parent
        self._describe = describe
        self._open: dict[int, tuple[TrackedRun, Candidate, TrialConfig]] = {}
        self._sender = ThreadPoolExecutor(1, "mlflow-trials")
        self.results: list[TrialResult] = []
        """The trials that have ended, those of earlier starts first."""
        self.unfinished: list[Unfinished] = []
        """Those that an earlier start left behind."""
        self.rejected: dict[str, int] = {}
        """Draws that earlier starts refused, by the bound that did it."""
        self._began = time.monotonic()
        if parent.resumed:
            self.results, self.unfinished = read_trials(parent.uri, parent.run_id)
            for result in self.results:  # a kill may have come between result and state
                runs.close_child(replace(parent, run_id=result.run_id), _END[result.state])
            tags = parent.client.get_run(parent.run_id).data.tags
            self.rejected = json.loads(tags.get(_REJECTED, "{}"))
            self._began -= float(tags.get(_SECONDS, "0"))

    def __enter__(self) -> "TrialStore":
        return self

    def __exit__(self, *error: object) -> None:
        for record, _, _ in self._open.values():
            self._send(runs.close_child, record, "KILLED")
        self.note_seconds()
        self._sender.shutdown(wait=True)

    @property
    def uri(self) -> str:
        """Address of MLflow."""
        return self._parent.uri

    @property
    def seconds(self) -> float:
        """Time that the sweep has taken so far, that of earlier starts included."""
        return time.monotonic() - self._began

    @property
    def num_opened(self) -> int:
        """Highest number of a trial so far."""
        numbers = [each.number for each in (*self.results, *self.unfinished)]
        return max((*numbers, *self._open), default=0)

    def open(
        self, number: int, candidate: Candidate, before: Unfinished | None = None
    ) -> tuple[TrackedRun, Any]:
        """Open the run of a trial, or that of an earlier start again.

        Returns:
            The run in MLflow, and what is to be trained.
        """
        name = f"{self._parent.name}-{self._parent.attempt}-{number:04d}"
        described = self._describe(candidate, name)
        if before is not None:
            record = runs.reopen_child(self._parent, before.run, parameters=described.settings)
        else:
            record = runs.open_child(
                self._parent,
                name,
                parameters=described.settings,
                tags={_NUMBER: str(number), _DRAW: json.dumps(candidate.draw)},
            )
        self._open[number] = record, candidate, described
        self._send(record.client.log_text, record.run_id, described.config_text, "config.yaml")
        return record, described.run

    def note_rejected(self, counts: Mapping[str, int]) -> None:
        """Keep how many draws were refused so far, by this start and the earlier ones."""
        self._send(
            self._parent.client.set_tag, self._parent.run_id, _REJECTED, json.dumps(dict(counts))
        )

    def note_seconds(self) -> None:
        """Keep how long the sweep has taken so far, for the next start to count on."""
        self._send(
            self._parent.client.set_tag, self._parent.run_id, _SECONDS, f"{self.seconds:.1f}"
        )

    def close(self, result: TrialResult, history: Sequence[Metrics] = ()) -> None:
        """Write down how a trial ended.

        Args:
            result: of `number`, without what this book knows: its run and what it cost.
            history: metrics of its epochs as far as they are known here; MLflow may lack the last
                ones of a trial that was stopped.
        """
        record, candidate, described = self._open.pop(result.number)
        result = replace(
            result,
            run_id=record.run_id,
            settings=candidate.draw,
            cost=candidate.cost,
            parameters=described.parameters,
            memory=described.memory,
        )
        self.results.append(result)
        self._send(record.log_history, history)
        self._send(record.client.set_tag, record.run_id, _RESULT, json.dumps(asdict(result)))
        self._send(runs.close_child, record, _END[result.state])

    def give_up(self, number: int) -> None:
        """Mark a trial as failed by no fault of its own: the next start goes on with it."""
        record, _, _ = self._open.pop(number)
        self._send(runs.close_child, record, "FAILED")

    def _send(self, action: Callable[..., Any], *arguments: Any) -> None:
        def send() -> None:
            try:
                action(*arguments)
            except Exception as error:
                logger.warning("MLflow did not take what is known of a trial: %s", error)

        self._sender.submit(send)


def read_trials(uri: str, run_id: str) -> tuple[list[TrialResult], list[Unfinished]]:
    """Read the trials of a sweep: those that have ended, and the others, by number.

    Where MLflow went away while a trial was opened it was opened again: the last one counts.

    Args:
        uri: address of MLflow.
        run_id: the sweep's run.
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
            others[number] = Unfinished(number, json.loads(tags[_DRAW]), run)
    left = sorted(others.keys() - ended.keys())
    return [ended[number] for number in sorted(ended)], [others[number] for number in left]
