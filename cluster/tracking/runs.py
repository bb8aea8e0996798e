"""MLflow: which run a name means, what state it is in, and what it has measured.

One rule for every pipeline. The newest attempt of a name decides: unfinished, it is resumed, if
its settings are the same; finished, a new attempt begins. See docs/decisions/002-run-identity.md.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunStatus, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from cluster.errors import TrackingError
from cluster.tracking.client import (
    EXPERIMENT,
    FAILURES,
    check_reachable,
    explain,
    first_line,
    make_client,
    masked,
    search,
    sqlite_file,
    tracking_uri,
)
from cluster.tracking.lease import LEASE_TAG, STALE_SECONDS, Lease, LeaseRenewal
from cluster.tracking.record import RETRY_SECONDS, TrackedRun

logger = logging.getLogger(__name__)
SETTLE_SECONDS = 1.0
"""Time in which two drivers that claim one run see each other."""
PARAM_LENGTH = 6000
"""Characters that MLflow keeps of a parameter."""
NAME_TAG = "ranet.name"
ATTEMPT_TAG = "ranet.attempt"
STORAGE_TAG = "ranet.storage"


def check_can_start(name: str, *, settings: Mapping[str, str], new_attempt: bool = False) -> None:
    """Refuse what `start` would refuse, without opening a run; `check_reachable` comes before.

    Raises:
        TrackingError: MLflow fails, another driver runs this name, or its unfinished attempt has
            other settings.
    """
    uri = tracking_uri()
    if (file := sqlite_file(uri)) is not None and not file.exists():
        return  # nothing was tracked there yet, and asking would make the file
    try:
        _check_attempt(name, last_attempt(name), settings, new_attempt)
    except FAILURES as error:
        raise TrackingError(f"MLflow at {masked(uri)} cannot be used: {explain(error)}") from error


@contextmanager
def open_run(
    name: str,
    *,
    settings: Mapping[str, str],
    parameters: Mapping[str, str],
    tags: Mapping[str, str],
    config_text: str,
    new_attempt: bool = False,
) -> Iterator[TrackedRun]:
    """Open the run that `name` means, and set its state truthfully on leaving.

    Args:
        name: of letters, digits, dot, dash and underscore.
        settings: those that decide what is trained; a resumed run must have the same.
        parameters: the other settings, free to change when a run is resumed.
        tags: what else is worth knowing about this start.
        config_text: the whole configuration, kept as config.yaml.
        new_attempt: begin a new attempt even where the last one is unfinished.

    Raises:
        TrackingError: MLflow does not answer, another driver runs this name, or its unfinished
            attempt has other settings.
    """
    check_reachable()
    uri = tracking_uri()
    lease = Lease.of_this_process()
    try:
        record = _open(uri, name, settings, parameters, lease, new_attempt)
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
    heart = LeaseRenewal(record, lease)
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
        tags={NAME_TAG: name, ATTEMPT_TAG: "1", MLFLOW_PARENT_RUN_ID: parent.run_id, **tags},
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
    record = TrackedRun(
        parent.uri, run.info.run_id, run.data.tags[NAME_TAG], attempt=1, resumed=True
    )
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
    found = search(client, experiment_id, f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'")
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_name))


def history(uri: str, run_id: str, metric: str) -> dict[int, float]:
    """Give the values of a metric by epoch."""
    entries = make_client(uri).get_metric_history(run_id, metric)
    return {entry.step: entry.value for entry in entries}


def last_attempt(name: str) -> Run | None:
    """Give the newest attempt of a name, whatever its state; nothing where there is none."""
    client = make_client(tracking_uri())
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return None if experiment is None else find_last_attempt(client, experiment.experiment_id, name)


def _set_state(record: TrackedRun, state: int) -> None:
    try:
        record.client.set_terminated(record.run_id, RunStatus.to_string(state))
    except Exception as error:
        logger.warning(
            "MLflow did not take the state of the run, the next start will put it right: %s",
            first_line(error),
        )


def _open(
    uri: str,
    name: str,
    settings: Mapping[str, str],
    parameters: Mapping[str, str],
    lease: Lease,
    new_attempt: bool,
) -> TrackedRun:
    client = make_client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    _close_abandoned(client, experiment_id)
    last = find_last_attempt(client, experiment_id, name)
    _check_attempt(name, last, settings, new_attempt)
    parameters = {**parameters, **settings}
    if last is not None and last.info.status != "FINISHED" and not new_attempt:
        record = TrackedRun(
            uri, last.info.run_id, name, int(last.data.tags[ATTEMPT_TAG]), resumed=True
        )
        client.set_tag(record.run_id, LEASE_TAG, lease.text())
        client.update_run(record.run_id, status="RUNNING")
        if not _is_described(last):
            _describe(record, parameters)
    else:
        attempt = 1 if last is None else int(last.data.tags[ATTEMPT_TAG]) + 1
        run = client.create_run(
            experiment_id,
            run_name=f"{name}-{attempt}",
            tags={NAME_TAG: name, ATTEMPT_TAG: str(attempt), LEASE_TAG: lease.text()},
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
        tags=[RunTag(STORAGE_TAG, record.storage_name)],  # MLflow writes tags after parameters
    )


def _is_described(run: Run) -> bool:
    """Whether its settings are there: its driver may have been killed just before."""
    return STORAGE_TAG in run.data.tags


def _close_abandoned(client: MlflowClient, experiment_id: str) -> None:
    """Mark runs as killed whose driver died without a word, whatever their name."""
    running = search(client, experiment_id, "attributes.status = 'RUNNING'")
    alive = set()
    for run in running:
        lease = Lease.of_run(run)
        if lease is not None and not lease.is_alive():
            client.set_terminated(run.info.run_id, "KILLED", end_time=int(lease.beat * 1000))
            logger.info("marked MLflow run %s as killed: its driver is gone", run.info.run_id)
        else:
            alive.add(run.info.run_id)
    for run in running:
        parent = run.data.tags.get(MLFLOW_PARENT_RUN_ID)
        if LEASE_TAG not in run.data.tags and parent is not None and parent not in alive:
            client.set_terminated(run.info.run_id, "KILLED")


def find_last_attempt(client: MlflowClient, experiment_id: str, name: str) -> Run | None:
    """Return the newest attempt of a name within an experiment, if any."""
    runs = search(client, experiment_id, f"tags.`{NAME_TAG}` = '{name}'")
    # Of two starts in the same moment the earlier one counts.
    return max(
        runs,
        key=lambda run: (int(run.data.tags[ATTEMPT_TAG]), -run.info.start_time, run.info.run_id),
        default=None,
    )


def _check_attempt(
    name: str, last: Run | None, settings: Mapping[str, str], new_attempt: bool
) -> None:
    """Refuse a name whose last attempt runs, or is unfinished and has other settings."""
    if last is None or last.info.status == "FINISHED":
        return
    if last.info.status == "RUNNING":
        holder = Lease.of_run(last)
        where = "" if holder is None else f" (process {holder.pid} on {holder.host.split('/')[0]})"
        if holder is None or holder.is_alive():
            raise TrackingError(
                f"{name} is running{where}, MLflow run {last.info.run_id}; "
                "wait for it, stop it, or use another name"
            )
    if not new_attempt and _is_described(last):
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
    client: MlflowClient, experiment_id: str, record: TrackedRun, lease: Lease
) -> None:
    """Give way to another driver that claimed the same attempt at the same time."""
    time.sleep(SETTLE_SECONDS)
    winner = find_last_attempt(client, experiment_id, record.name)
    assert winner is not None
    holder = Lease.of_run(winner)
    if winner.info.run_id == record.run_id and holder is not None and holder.token == lease.token:
        return
    if winner.info.run_id != record.run_id:
        client.delete_run(record.run_id)
    raise TrackingError(
        f"{record.name} was started by another process at the same time, MLflow run "
        f"{winner.info.run_id}; wait for it, or use another name"
    )
