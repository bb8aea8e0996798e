"""MLflow: which run a name means, what state it is in, and what it has measured.

One rule for every pipeline. The newest attempt of a name decides: unfinished, it is resumed, if
its settings are the same; finished, a new attempt begins. See docs/decisions/002-run-identity.md.
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import queue
import re
import socket
import subprocess
import tempfile
import time
import uuid
from _thread import interrupt_main
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from typing import Any, Literal, TypeVar

import mlflow
import requests
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunStatus, RunTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.credentials import get_default_host_creds, read_mlflow_creds
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.rest_utils import http_request
from mlflow.utils.time import get_current_time_millis
from sqlalchemy.exc import SQLAlchemyError

from cluster.config import in_submitted_job
from cluster.errors import TrackingError
from ranet.protocols import Metrics

_Value = TypeVar("_Value")

logger = logging.getLogger(__name__)

EXPERIMENT = "ranet"
"""Name of the MLflow experiment that holds every run."""

BEAT_SECONDS = 20.0
"""Time between two signs of life of a run's driver."""
STALE_SECONDS = 90.0
"""A driver on another host that gave no sign of life for so long counts as dead."""
SETTLE_SECONDS = 1.0
"""Time in which two drivers that claim one run see each other."""
RETRY_SECONDS = 5.0
"""Time between two attempts to reach an MLflow that does not answer."""
PATIENCE_SECONDS = 300.0
"""How long the end of a run waits for an MLflow that does not answer."""
DELIVERY_SECONDS = 5.0
"""How long the driver gives Ray's controller to deliver the metrics of the last epochs."""
PARAM_LENGTH = 6000
"""Characters that MLflow keeps of a parameter."""
FAILURES = (
    mlflow.MlflowException,
    OSError,  # those of requests among them
    SQLAlchemyError,
    Boto3Error,
    BotoCoreError,
    ClientError,
)
"""What MLflow, its database and its store raise where they cannot be used."""

_NAME = "ranet.name"
_ATTEMPT = "ranet.attempt"
_STORAGE = "ranet.storage"
_LEASE = "ranet.lease"
_CHECKPOINTS = "checkpoints.json"


@dataclass(frozen=True)
class TrackedRun:
    """A run in MLflow that this process owns, small enough to be sent to other processes."""

    uri: str
    run_id: str
    name: str
    attempt: int
    resumed: bool

    @property
    def storage_name(self) -> str:
        """Folder of this attempt's checkpoints; no other attempt, in any database, has it."""
        return f"{self.name}-{self.attempt}-{self.run_id[:8]}"

    @property
    def client(self) -> MlflowClient:
        """A client of the server that holds the run."""
        return make_client(self.uri)

    def log_history(self, history: Iterable[Metrics]) -> None:
        """Log the metrics of those epochs that MLflow does not have.

        A `MetricWriter` of another process may be about to deliver them: it gets some time.
        """
        entries = [_Entry(dict(metrics), None, get_current_time_millis()) for metrics in history]
        deadline = time.monotonic() + DELIVERY_SECONDS
        while time.monotonic() < deadline:
            if {entry.step for entry in entries} <= self._insist(lambda: _known_steps(self)):
                return
            time.sleep(0.2)
        self._insist(lambda: _deliver(self, entries))

    def log_checkpoint(self, metrics: Metrics, location: str, keep: int) -> None:
        """Note step, metrics and location of the newest checkpoint, and of `keep` in all."""
        entry = _Entry(dict(metrics), location, get_current_time_millis())
        self._insist(lambda: _note_checkpoint(self, entry, keep))

    def log_folder(self, folder: Path | str, artifact_path: str) -> None:
        """Keep the files of a folder as artifacts."""
        self._insist(lambda: self.client.log_artifacts(self.run_id, str(folder), artifact_path))

    def _insist(self, action: Callable[[], _Value]) -> _Value:
        """Do what needs MLflow, waiting for it if it does not answer.

        Raises:
            TrackingError: it stayed away for `PATIENCE_SECONDS`.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return action()
            except Exception as error:
                if time.monotonic() > deadline:
                    raise TrackingError(
                        f"MLflow at {masked(self.uri)} does not answer ({_sentence(error)}); "
                        f"training is complete: start {self.name} again to do the rest"
                    ) from error
                logger.warning("MLflow does not answer, waiting for it: %s", _sentence(error))
                time.sleep(RETRY_SECONDS)


def tracking_uri() -> str:
    """Return MLflow's address, with the path of a SQLite file made absolute for other processes."""
    uri = mlflow.get_tracking_uri()
    file = _sqlite_file(uri)
    return uri if file is None else f"sqlite:///{file.absolute()}"


def _sqlite_file(uri: str) -> Path | None:
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(path)


def check_reachable() -> None:
    """Knock at MLflow's door: does a server answer, of a version that fits, and let us in?

    Raises:
        TrackingError: it does not, or what it keeps would be thrown away.
    """
    uri = tracking_uri()
    if re.search(r"://[^/\s@]*:[^/\s@]+@", uri):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {masked(uri)}, with a password in it, which would be sent to "
            "every process of a run; leave it out and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or write ~/.mlflow/credentials"
        )
    is_here = Path(uri.removeprefix("sqlite:///")).is_relative_to(Path.cwd())
    if is_here and in_submitted_job():
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {masked(os.environ.get('MLFLOW_TRACKING_URI', 'not set'))}: a "
            "submitted job runs in a folder that is thrown away; give the address of a server"
        )
    if not uri.startswith(("http://", "https://")):
        return
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=5)
    except requests.RequestException as error:
        raise TrackingError(
            f"MLflow at {masked(uri)} does not answer ({type(error).__name__}); "
            "start its server or set MLFLOW_TRACKING_URI to one that runs"
        ) from error
    try:
        make_client(uri).search_experiments(max_results=1)
        answer = http_request(get_default_host_creds(uri), "/version", "GET")
    except FAILURES as error:
        raise TrackingError(f"MLflow at {masked(uri)} cannot be used: {explain(error)}") from error
    _check_version(uri, "" if answer is None else answer.text)


def _check_version(uri: str, version: str) -> None:
    """Refuse a server that may not know what this client asks for.

    Raises:
        TrackingError: it is older, or of another major version, or no MLflow.
    """
    ours = [int(part) for part in mlflow.__version__.split(".")[:2]]
    theirs = [int(part) for part in re.findall(r"\d+", version[:20])[:2]]
    if theirs[:1] != ours[:1] or theirs < ours:
        raise TrackingError(
            f"MLflow at {masked(uri)} is version {version[:20]!r}, and this client is "
            f"{mlflow.__version__}: install {mlflow.__version__} there and upgrade its database "
            "(mlflow db upgrade), or set MLFLOW_TRACKING_URI to another server"
        )


def check_startable(name: str, *, settings: Mapping[str, str], fresh: bool = False) -> None:
    """Refuse what `start` would refuse, without opening a run; `check_reachable` comes before.

    Raises:
        TrackingError: MLflow fails, another driver runs this name, or its unfinished attempt has
            other settings.
    """
    uri = tracking_uri()
    if (file := _sqlite_file(uri)) is not None and not file.exists():
        return  # nothing was tracked there yet, and asking would make the file
    try:
        _check_startable(name, last_attempt(name), settings, fresh)
    except FAILURES as error:
        raise TrackingError(f"MLflow at {masked(uri)} cannot be used: {explain(error)}") from error


def explain(error: Exception) -> str:
    """Say in one sentence what a failure of MLflow's means, and what to do."""
    status = _http_status(error)
    user = read_mlflow_creds().username
    text = _sentence(error)
    if status == 401:
        problem = f"user {user} with this password" if user else "calls without a user"
        return (
            f"it refuses {problem}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "write ~/.mlflow/credentials, on the machine of the driver"
        )
    if status == 403 and "Host header" in str(error):
        return (
            "it does not know itself by this name; add the name and port of the address to "
            "MLFLOW_SERVER_ALLOWED_HOSTS where the server starts, or use another of its names"
        )
    if status == 403:
        return f"user {user} may not do this; ask its administrator for the right to write ({text})"
    if "too many 503" in text or "No space left" in str(error):
        return (
            "its database does not take what is written; look into the server's log, and free "
            "space on PostgreSQL's disk where that is full"
        )
    return f"{text}; start its server or set MLFLOW_TRACKING_URI"


def _http_status(error: Exception) -> int | None:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code
    return error.get_http_status_code() if isinstance(error, mlflow.MlflowException) else None


def make_client(uri: str) -> MlflowClient:
    """Return a quiet client that gives up after seconds: MLflow's own default is minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return MlflowClient(uri)


def provenance() -> dict[str, str]:
    """Return tags that say what ran where: commit, package versions, Python, hardware."""
    tags = {
        "python": platform.python_version(),
        "hardware.host": socket.gethostname(),
        "hardware.cpu": f"{os.cpu_count()} x {_cpu_model()}",
    }
    for package in ("torch", "ray", "mlflow", "ffcv", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            tags[f"version.{package}"] = importlib.metadata.version(package)
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = "true" if _git("status", "--porcelain") else "false"
    return tags


@contextmanager
def start(
    name: str,
    *,
    settings: Mapping[str, str],
    parameters: Mapping[str, str],
    tags: Mapping[str, str],
    config_text: str,
    fresh: bool = False,
) -> Iterator[TrackedRun]:
    """Open the run that `name` means, and set its state truthfully on leaving.

    Args:
        name: of letters, digits, dot, dash and underscore.
        settings: those that decide what is trained; a resumed run must have the same.
        parameters: the other settings, free to change when a run is resumed.
        tags: what else is worth knowing about this start.
        config_text: the whole configuration, kept as config.yaml.
        fresh: begin a new attempt even where the last one is unfinished.

    Raises:
        TrackingError: MLflow does not answer, another driver runs this name, or its unfinished
            attempt has other settings.
    """
    check_reachable()
    uri = tracking_uri()
    lease = _Lease.of_this_process()
    try:
        record = _open(uri, name, settings, parameters, lease, fresh)
        for key, value in tags.items():
            record.client.set_tag(record.run_id, key, value)
        record.client.log_text(record.run_id, config_text, "config.yaml")
    except FAILURES as error:
        raise TrackingError(f"MLflow at {masked(uri)} cannot be used: {explain(error)}") from error
    logger.info(
        "%s attempt %d of %s, MLflow run %s",
        "resuming" if record.resumed else "starting", record.attempt, name, record.run_id,
    )  # fmt: skip
    state = RunStatus.FAILED
    heart = _Heart(record, lease)
    heart.start()
    try:
        yield record
        state = RunStatus.FINISHED
    except (KeyboardInterrupt, SystemExit):
        state = RunStatus.KILLED
        if heart.lost.is_set():
            raise TrackingError(
                f"{name} was taken over by another driver, which found no sign of life of this one "
                f"for {STALE_SECONDS:g} seconds, MLflow run {record.run_id}; this one has stopped"
            ) from None
        raise
    finally:
        heart.leaving.set()
        heart.join(timeout=RETRY_SECONDS)
        if not heart.lost.is_set():
            _set_state(record, state)


def open_child(
    parent: TrackedRun, name: str, *, parameters: Mapping[str, str], tags: Mapping[str, str]
) -> TrackedRun:
    """Open a run below one that this process owns; it is closed by `close_child`.

    It has no signs of life of its own: where its parent has ended, it has too.

    Args:
        parent: the run above.
        name: its name; another one for every child.
        parameters: its settings.
        tags: what else is worth knowing.
    """
    client = parent.client
    run = client.create_run(
        client.get_run(parent.run_id).info.experiment_id,
        run_name=name,
        tags={_NAME: name, _ATTEMPT: "1", MLFLOW_PARENT_RUN_ID: parent.run_id, **tags},
    )
    record = TrackedRun(parent.uri, run.info.run_id, name, attempt=1, resumed=False)
    _describe(record, parameters)
    return record


def reopen_child(parent: TrackedRun, run: Run, *, parameters: Mapping[str, str]) -> TrackedRun:
    """Go on with a child of an earlier start, which may have been killed while opening it.

    Args:
        parent: the run above.
        run: the child.
        parameters: its settings, of which those of the first start count.
    """
    parent.client.update_run(run.info.run_id, status="RUNNING")
    record = TrackedRun(parent.uri, run.info.run_id, run.data.tags[_NAME], attempt=1, resumed=True)
    if not _is_described(run):
        _describe(record, parameters)
    return record


def close_child(record: TrackedRun, state: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Set the state in which a child ended, unless it has it."""
    if record.client.get_run(record.run_id).info.status != state:
        _set_state(record, RunStatus.from_string(state))


def children(uri: str, run_id: str) -> list[Run]:
    """Give the runs below a run, in the order in which they were opened."""
    client = make_client(uri)
    experiment_id = client.get_run(run_id).info.experiment_id
    found = _search(client, experiment_id, f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'")
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_name))


def history(uri: str, run_id: str, metric: str) -> dict[int, float]:
    """Give the values of a metric by epoch."""
    entries = make_client(uri).get_metric_history(run_id, metric)
    return {entry.step: entry.value for entry in entries}


def last_attempt(name: str) -> Run | None:
    """Give the newest attempt of a name, whatever its state; nothing where there is none."""
    client = make_client(tracking_uri())
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return None if experiment is None else _last_attempt(client, experiment.experiment_id, name)


def _set_state(record: TrackedRun, state: int) -> None:
    try:
        record.client.set_terminated(record.run_id, RunStatus.to_string(state))
    except Exception as error:
        logger.warning(
            "MLflow did not take the state of the run, the next start will put it right: %s",
            _sentence(error),
        )


class MetricWriter:
    """Sends the metrics of each epoch to MLflow from a thread, and keeps them until it answers."""

    def __init__(
        self, record: TrackedRun, *, keep_checkpoints: int, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self._record = record
        self._keep_checkpoints = keep_checkpoints
        self._retry_seconds = retry_seconds
        self._queue: queue.Queue[_Entry] = queue.Queue()
        Thread(target=self._run, name="mlflow-metrics", daemon=True).start()

    def put(self, metrics: Metrics, location: str | None = None) -> None:
        """Queue the metrics of one epoch, and where its checkpoint lies; never waits."""
        self._queue.put(_Entry(dict(metrics), location, get_current_time_millis()))

    def flush(self, timeout: float) -> bool:
        """Wait for MLflow to have all, for at most `timeout` seconds; say whether it has."""
        deadline = time.monotonic() + timeout
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self._queue.unfinished_tasks

    def _run(self) -> None:
        lost = False
        while True:
            entry = self._queue.get()
            while True:
                try:
                    _deliver(self._record, [entry])
                    _note_checkpoint(self._record, entry, self._keep_checkpoints)
                    break
                except Exception as error:
                    if not lost:
                        logger.warning(
                            "MLflow does not answer, training goes on and its metrics are kept: %s",
                            _sentence(error),
                        )
                    lost = True
                    time.sleep(self._retry_seconds)
            if lost:
                logger.warning("MLflow answers again, kept metrics are being delivered")
                lost = False
            self._queue.task_done()


@dataclass(frozen=True)
class _Entry:
    """Metrics of one epoch on their way to MLflow."""

    metrics: Metrics
    location: str | None
    time: int

    @property
    def step(self) -> int:
        return int(self.metrics["epoch"])

    @property
    def is_within_epoch(self) -> bool:
        """Whether this is a checkpoint between two epochs, which has no metrics to log."""
        return "step" in self.metrics


def _known_steps(record: TrackedRun) -> set[int]:
    """Epochs whose metrics MLflow has."""
    return {metric.step for metric in record.client.get_metric_history(record.run_id, "epoch")}


def _deliver(record: TrackedRun, entries: list[_Entry]) -> None:
    """Log the entries whose step MLflow does not have: it would keep both values."""
    client = record.client
    entries = [entry for entry in entries if not entry.is_within_epoch]
    if not entries:
        return
    known = _known_steps(record)
    for entry in entries:
        if entry.step not in known:
            batch = [
                Metric(name, value, entry.time, entry.step) for name, value in entry.metrics.items()
            ]
            client.log_batch(record.run_id, metrics=batch)
            known.add(entry.step)


def _note_checkpoint(record: TrackedRun, entry: _Entry, keep: int) -> None:
    if entry.location is None:
        return
    client = record.client
    kept: list[dict[str, Any]] = []
    if any(file.path == _CHECKPOINTS for file in client.list_artifacts(record.run_id)):
        with tempfile.TemporaryDirectory() as folder:
            path = client.download_artifacts(record.run_id, _CHECKPOINTS, folder)
            kept = [
                old
                for old in json.loads(Path(path).read_text())
                if _place(old["metrics"]) != _place(entry.metrics)
            ]
    kept.append({"step": entry.step, "location": entry.location, "metrics": entry.metrics})
    client.log_text(record.run_id, json.dumps(kept[-keep:], indent=2), _CHECKPOINTS)


def _place(metrics: Metrics) -> tuple[float, float]:
    """Epochs done, and steps of the next one."""
    return metrics["epoch"], metrics.get("step", 0.0)


@dataclass(frozen=True)
class _Lease:
    """Which process drives a run, and when it last gave a sign of life."""

    host: str
    pid: int
    started: int
    token: str
    beat: float

    @classmethod
    def of_this_process(cls) -> "_Lease":
        started = _process_start(os.getpid())
        assert started is not None
        return cls(_host(), os.getpid(), started, uuid.uuid4().hex, time.time())

    @classmethod
    def of_run(cls, run: Run) -> "_Lease | None":
        text = run.data.tags.get(_LEASE)
        return None if text is None else cls(**json.loads(text))

    def text(self) -> str:
        return json.dumps(asdict(replace(self, beat=time.time())))

    def is_alive(self) -> bool:
        if self.host == _host():
            return _process_start(self.pid) == self.started
        return time.time() - self.beat < STALE_SECONDS


def _open(
    uri: str,
    name: str,
    settings: Mapping[str, str],
    parameters: Mapping[str, str],
    lease: _Lease,
    fresh: bool,
) -> TrackedRun:
    client = make_client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    _close_abandoned(client, experiment_id)
    last = _last_attempt(client, experiment_id, name)
    _check_startable(name, last, settings, fresh)
    parameters = {**parameters, **settings}
    if last is not None and last.info.status != "FINISHED" and not fresh:
        record = TrackedRun(
            uri, last.info.run_id, name, int(last.data.tags[_ATTEMPT]), resumed=True
        )
        client.set_tag(record.run_id, _LEASE, lease.text())
        client.update_run(record.run_id, status="RUNNING")
        if not _is_described(last):
            _describe(record, parameters)
    else:
        attempt = 1 if last is None else int(last.data.tags[_ATTEMPT]) + 1
        run = client.create_run(
            experiment_id,
            run_name=f"{name}-{attempt}",
            tags={_NAME: name, _ATTEMPT: str(attempt), _LEASE: lease.text()},
        )
        record = TrackedRun(uri, run.info.run_id, name, attempt, resumed=False)
        _describe(record, parameters)
    _check_claim(client, experiment_id, record, lease)
    return record


def _describe(record: TrackedRun, parameters: Mapping[str, str]) -> None:
    """Log the settings of a run, and that they are there."""
    record.client.log_batch(
        record.run_id,
        params=[Param(key, value[:PARAM_LENGTH]) for key, value in parameters.items()],
        tags=[RunTag(_STORAGE, record.storage_name)],  # MLflow writes tags after parameters
    )


def _is_described(run: Run) -> bool:
    """Whether its settings are there: its driver may have been killed just before."""
    return _STORAGE in run.data.tags


def _close_abandoned(client: MlflowClient, experiment_id: str) -> None:
    """Mark runs as killed whose driver died without a word, whatever their name."""
    running = _search(client, experiment_id, "attributes.status = 'RUNNING'")
    alive = set()
    for run in running:
        lease = _Lease.of_run(run)
        if lease is not None and not lease.is_alive():
            client.set_terminated(run.info.run_id, "KILLED", end_time=int(lease.beat * 1000))
            logger.info("marked MLflow run %s as killed: its driver is gone", run.info.run_id)
        else:
            alive.add(run.info.run_id)
    for run in running:
        parent = run.data.tags.get(MLFLOW_PARENT_RUN_ID)
        if _LEASE not in run.data.tags and parent is not None and parent not in alive:
            client.set_terminated(run.info.run_id, "KILLED")


def _last_attempt(client: MlflowClient, experiment_id: str, name: str) -> Run | None:
    runs = _search(client, experiment_id, f"tags.`{_NAME}` = '{name}'")
    # Of two starts in the same moment the earlier one counts.
    return max(
        runs,
        key=lambda run: (int(run.data.tags[_ATTEMPT]), -run.info.start_time, run.info.run_id),
        default=None,
    )


def _check_startable(name: str, last: Run | None, settings: Mapping[str, str], fresh: bool) -> None:
    """Refuse a name whose last attempt runs, or is unfinished and has other settings."""
    if last is None or last.info.status == "FINISHED":
        return
    if last.info.status == "RUNNING":
        holder = _Lease.of_run(last)
        where = "" if holder is None else f" (process {holder.pid} on {holder.host.split('/')[0]})"
        if holder is None or holder.is_alive():
            raise TrackingError(
                f"{name} is running{where}, MLflow run {last.info.run_id}; "
                "wait for it, stop it, or use another name"
            )
    if not fresh and _is_described(last):
        _check_same_settings(name, last, settings)


def _check_same_settings(name: str, run: Run, settings: Mapping[str, str]) -> None:
    then = run.data.params
    changes = [
        f"{key}: {then.get(key, '(none)')} -> {value}"
        for key, value in settings.items()
        if then.get(key) != value[:PARAM_LENGTH]
    ]
    if changes:
        raise TrackingError(
            f"{name} is unfinished and its settings have changed: {'; '.join(changes)}; give the "
            "old settings to go on with it, --new-attempt to abandon it, or another name"
        )


def _check_claim(
    client: MlflowClient, experiment_id: str, record: TrackedRun, lease: _Lease
) -> None:
    """Give way to another driver that claimed the same attempt at the same time."""
    time.sleep(SETTLE_SECONDS)
    winner = _last_attempt(client, experiment_id, record.name)
    assert winner is not None
    holder = _Lease.of_run(winner)
    if winner.info.run_id == record.run_id and holder is not None and holder.token == lease.token:
        return
    if winner.info.run_id != record.run_id:
        client.delete_run(record.run_id)
    raise TrackingError(
        f"{record.name} was started by another process at the same time, MLflow run "
        f"{winner.info.run_id}; wait for it, or use another name"
    )


class _Heart(Thread):
    """Gives signs of life, and stops the process where another driver has taken the run."""

    def __init__(self, record: TrackedRun, lease: _Lease) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.leaving = Event()
        self.lost = Event()
        self._record = record
        self._lease = lease
        self._in_main = current_thread() is main_thread()

    def run(self) -> None:
        client = self._record.client
        machine = SystemMetricsMonitor(self._record.run_id, tracking_uri=self._record.uri)
        while not self.leaving.wait(BEAT_SECONDS):
            try:
                run = client.get_run(self._record.run_id)
                holder = _Lease.of_run(run)
                if holder is not None and holder.token != self._lease.token:
                    break
                client.set_tag(run.info.run_id, _LEASE, self._lease.text())
                if run.info.status != "RUNNING":  # a start of another run thought us dead
                    client.update_run(run.info.run_id, status="RUNNING")
                _log_machine(client, run, machine)
            except Exception as error:
                logger.debug("no sign of life could be given: %s", error)
        else:
            return
        self.lost.set()
        logger.error("another driver has taken over MLflow run %s", self._record.run_id)
        if self._in_main:
            interrupt_main()


def _log_machine(client: MlflowClient, run: Run, machine: SystemMetricsMonitor) -> None:
    """Log how busy this machine is, under MLflow's own names; its thread ends with an outage."""
    machine.collect_metrics()
    now = get_current_time_millis()
    step = (now - run.info.start_time) // 1000  # so that a resumed run goes on counting
    values = machine.aggregate_metrics()
    for monitor in machine.monitors:
        monitor.clear_metrics()
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(f"system/{key}", value, now, step) for key, value in values.items()],
    )


def _search(client: MlflowClient, experiment_id: str, condition: str) -> list[Run]:
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], condition, page_token=token)
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def _sentence(error: Exception) -> str:
    text = masked(str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def masked(text: str) -> str:
    """Return a text without the users and passwords of the addresses in it."""
    return re.sub(r"(?<=://)[^/\s@]*@", "***@", text)


def _host() -> str:
    """Name of this machine since it was last started: process ids mean nothing beyond it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}"


def _process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks; none where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _git(*arguments: str) -> str:
    """Return what git says about the working folder, nothing where it is no repository."""
    try:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
