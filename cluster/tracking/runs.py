"""Open, resume and close MLflow runs.

All pipelines follow one rule: the newest attempt of a name decides. An unfinished attempt is
resumed if its settings are unchanged; after a finished attempt a new one begins.
See docs/decisions/002-run-identity.md.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from mlflow import MlflowClient, MlflowException
from mlflow.entities import Param, RunStatus, RunTag, ViewType
from mlflow.entities import Run as MlflowRun

from cluster.errors import TrackingError
from cluster.tracking.client import (
    EXPERIMENT,
    check_reachable,
    find_experiment,
    make_client,
    search,
    tracking_uri,
)
from cluster.tracking.database import create_experiment, ensure_database, sqlite_file
from cluster.tracking.failures import deleted_message, explained, first_line
from cluster.tracking.lease import LEASE_TAG, STALE_SECONDS, Lease, LeaseRenewal
from cluster.tracking.mlflow_internals import PARENT_RUN_TAG
from cluster.tracking.record import RETRY_PAUSE_SECONDS, TrackedRun, has_reported

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 1.0
"""Time after which two drivers that claim one run at the same time see each other's claims."""
PARAM_LENGTH = 6000
"""Max. characters of a parameter's value in MLflow."""

NAME_TAG = "ranet.name"
ATTEMPT_TAG = "ranet.attempt"
STORAGE_TAG = "ranet.storage"


@dataclass(frozen=True)
class _Claim:
    """Request of this process to drive the run of a name."""

    name: str
    settings: Mapping[str, str]
    parameters: Mapping[str, str]
    new_attempt: bool
    lease: Lease


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
    """Open a run, and set its final state when the context ends.

    Args:
        name: letters, digits, dots, dashes and underscores.
        settings: settings that decide the training's result; a resumed run must have the same.
        parameters: all other parameters, which may change when a run is resumed.
        tags: further information on this invocation.
        config_text: the whole configuration, logged as config.yaml.
        new_attempt: begin a new attempt even if the last one is unfinished.

    Raises:
        TrackingError: MLflow is unavailable, another driver runs this name, or its unfinished
            attempt has other settings.
    """
    check_reachable()
    uri = tracking_uri()
    lease = Lease.of_this_process()
    # Find or create the run and claim it.
    claim = _Claim(name, settings, parameters, new_attempt, lease)
    record = _claim_and_describe(uri, claim, tags, config_text)
    # Renew the lease while the context is open, so that other drivers leave this run alone.
    state = RunStatus.FAILED
    renewal = LeaseRenewal(record, lease)
    renewal.start()
    try:
        yield record
        state = RunStatus.FINISHED
    except (KeyboardInterrupt, SystemExit):
        state = RunStatus.KILLED
        # The interrupt came from the renewal thread if another driver holds the lease.
        if renewal.lost.is_set():
            raise TrackingError(
                f"{name} was taken over by another driver, as this one had sent no heartbeat for "
                f"{STALE_SECONDS:g} seconds, MLflow run {record.run_id}; this driver has stopped"
            ) from None
        raise
    finally:
        # Stop the renewal before the state is set: it would set the state to RUNNING again.
        renewal.leaving.set()
        renewal.join(timeout=RETRY_PAUSE_SECONDS)
        # A lost run belongs to the other driver, and so does its state.
        if not renewal.lost.is_set():
            _set_state(record, state)


def _claim_and_describe(
    uri: str, claim: _Claim, tags: Mapping[str, str], config_text: str
) -> TrackedRun:
    """Claim a run, and log its tags and its configuration.

    Every failure here ends the invocation: nothing has been started yet, so the user can correct
    the cause and run the command again.
    """
    with explained(uri):
        ensure_database(uri)
        record = _claim_run(uri, claim)
        for key, value in tags.items():
            record.client.set_tag(record.run_id, key, value)
        record.client.log_text(record.run_id, config_text, "config.yaml")
    logger.info(
        "%s attempt %d of %s, MLflow run %s",
        "resuming" if record.resumed else "starting",
        record.attempt,
        record.name,
        record.run_id,
    )
    return record


def check_can_start(name: str, *, settings: Mapping[str, str], new_attempt: bool = False) -> None:
    """Check what `open_run` would check, without opening a run; call `check_reachable` first.

    Raises:
        TrackingError: MLflow fails, another driver runs this name, or its unfinished attempt has
            other settings.
    """
    uri = tracking_uri()
    with explained(uri):
        _check_attempt(make_client(uri), name, last_attempt(name), settings, new_attempt)


def storage_to_resume(name: str) -> str | None:
    """Return the checkpoint folder that the next invocation of a name would resume from, if any.

    Raises:
        TrackingError: MLflow fails.
    """
    uri = tracking_uri()
    with explained(uri):
        last = last_attempt(name)
        if last is None or last.info.status == "FINISHED" or not _has_parameters(last):
            return None
        return last.data.tags[STORAGE_TAG] if has_reported(make_client(uri), last) else None


def open_child(
    parent: TrackedRun, name: str, *, parameters: Mapping[str, str], tags: Mapping[str, str]
) -> TrackedRun:
    """Open a child run of a run that this process owns.

    A child run has no lease: it ends with its parent. `close_child` sets its final state.

    Args:
        parent: the parent run.
        name: name of the child run, different for every child run.
        parameters: settings of the child run.
        tags: further information.
    """
    client = parent.client
    run = client.create_run(
        client.get_run(parent.run_id).info.experiment_id,
        run_name=name,
        tags={NAME_TAG: name, ATTEMPT_TAG: "1", PARENT_RUN_TAG: parent.run_id, **tags},
    )
    record = TrackedRun(parent.uri, run.info.run_id, name, attempt=1, resumed=False)
    _log_parameters(record, parameters)
    return record


def reopen_child(
    parent: TrackedRun, run: MlflowRun, *, parameters: Mapping[str, str]
) -> TrackedRun:
    """Resume a child run of a previous invocation.

    Args:
        parent: the parent run.
        run: the child run.
        parameters: its settings, logged only if the previous invocation was killed before it
            logged them.
    """
    parent.client.update_run(run.info.run_id, status="RUNNING")
    name = run.data.tags[NAME_TAG]
    record = TrackedRun(parent.uri, run.info.run_id, name, attempt=1, resumed=True)
    if not _has_parameters(run):
        _log_parameters(record, parameters)
    return record


def close_child(record: TrackedRun, state: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Set a child run's final state, unless it is set already."""
    if record.client.get_run(record.run_id).info.status != state:
        _set_state(record, RunStatus.from_string(state))


def children(uri: str, run_id: str) -> list[MlflowRun]:
    """Return the child runs of a run in order of creation."""
    client = make_client(uri)
    experiment_id = client.get_run(run_id).info.experiment_id
    found = search(client, experiment_id, f"tags.`{PARENT_RUN_TAG}` = '{run_id}'")
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_name))


def history(uri: str, run_id: str, metric: str) -> dict[int, float]:
    """Return the values of a metric by epoch."""
    entries = make_client(uri).get_metric_history(run_id, metric)
    return {entry.step: entry.value for entry in entries}


def last_attempt(name: str) -> MlflowRun | None:
    """Return the newest attempt of a name, in any state, if any."""
    uri = tracking_uri()
    if (file := sqlite_file(uri)) is not None and not file.exists():
        return None  # no run was tracked there yet, and a query would create the file
    client = make_client(uri)
    experiment = find_experiment(client, uri)
    if experiment is None:
        return None
    return find_last_attempt(client, experiment.experiment_id, name)


def find_last_attempt(client: MlflowClient, experiment_id: str, name: str) -> MlflowRun | None:
    """Return the newest attempt of a name within an experiment, if any."""
    runs = search(client, experiment_id, f"tags.`{NAME_TAG}` = '{name}'")
    # Two drivers may create the same attempt at once: the run that was created first counts.
    return max(
        runs,
        key=lambda run: (int(run.data.tags[ATTEMPT_TAG]), -run.info.start_time, run.info.run_id),
        default=None,
    )


def _set_state(record: TrackedRun, state: int) -> None:
    try:
        record.client.set_terminated(record.run_id, RunStatus.to_string(state))
    except Exception as error:
        logger.warning(
            "MLflow did not save the final state of the run, the next invocation will correct "
            "it: %s",
            first_line(error),
        )


def _claim_run(uri: str, claim: _Claim) -> TrackedRun:
    client = make_client(uri)
    experiment_id = _find_or_create_experiment(client, uri)
    # Correct the states that dead drivers left, as the decision below depends on them.
    _close_abandoned(client, experiment_id)
    # Decide by the newest attempt: reject, resume, or begin a new attempt.
    last = find_last_attempt(client, experiment_id, claim.name)
    _check_attempt(client, claim.name, last, claim.settings, claim.new_attempt)
    is_finished = last is None or last.info.status == "FINISHED" or claim.new_attempt
    if last is None:
        _report_deleted(client, experiment_id, claim.name)
    if last is None or is_finished or _setting_changes(last, claim.settings):
        record = _begin(uri, experiment_id, last, claim)
    else:
        record = _resume(uri, last, claim)
    # MLflow has no locks: the claim holds only if no other driver made one in the same second.
    _check_claim(client, experiment_id, record, claim.lease)
    return record


def _resume(uri: str, last: MlflowRun, claim: _Claim) -> TrackedRun:
    attempt = int(last.data.tags[ATTEMPT_TAG])
    record = TrackedRun(uri, last.info.run_id, claim.name, attempt, resumed=True)
    record.client.set_tag(record.run_id, LEASE_TAG, claim.lease.to_json())
    record.client.update_run(record.run_id, status="RUNNING")
    if not _has_parameters(last):
        _log_parameters(record, {**claim.parameters, **claim.settings})
    return record


def _begin(uri: str, experiment_id: str, last: MlflowRun | None, claim: _Claim) -> TrackedRun:
    attempt = 1 if last is None else int(last.data.tags[ATTEMPT_TAG]) + 1
    run = make_client(uri).create_run(
        experiment_id,
        run_name=f"{claim.name}-{attempt}",
        tags={
            NAME_TAG: claim.name,
            ATTEMPT_TAG: str(attempt),
            LEASE_TAG: claim.lease.to_json(),
        },
    )
    record = TrackedRun(uri, run.info.run_id, claim.name, attempt, resumed=False)
    _log_parameters(record, {**claim.parameters, **claim.settings})
    return record


def _log_parameters(record: TrackedRun, parameters: Mapping[str, str]) -> None:
    """Log a run's parameters, and a tag that marks them as complete."""
    record.client.log_batch(
        record.run_id,
        params=[Param(key, value[:PARAM_LENGTH]) for key, value in parameters.items()],
        tags=[RunTag(STORAGE_TAG, record.storage_name)],  # MLflow writes tags after parameters
    )


def _has_parameters(run: MlflowRun) -> bool:
    """Return whether a run's parameters are complete.

    A driver may have been killed before it logged all parameters.
    """
    return STORAGE_TAG in run.data.tags


def _close_abandoned(client: MlflowClient, experiment_id: str) -> None:
    """Set the state of all runs with a dead driver to KILLED."""
    running = search(client, experiment_id, "attributes.status = 'RUNNING'")
    alive = set()
    for run in running:
        lease = Lease.of_run(run)
        if lease is not None and not lease.is_alive():
            end_time = int(lease.last_heartbeat * 1000)
            client.set_terminated(run.info.run_id, "KILLED", end_time=end_time)
            logger.info("marked MLflow run %s as killed: its driver is gone", run.info.run_id)
        else:
            alive.add(run.info.run_id)
    # Child runs have no lease and end with their parent.
    for run in running:
        parent = run.data.tags.get(PARENT_RUN_TAG)
        if LEASE_TAG not in run.data.tags and parent is not None and parent not in alive:
            client.set_terminated(run.info.run_id, "KILLED")


def _check_attempt(
    client: MlflowClient,
    name: str,
    last: MlflowRun | None,
    settings: Mapping[str, str],
    new_attempt: bool,
) -> None:
    """Reject a name whose last attempt prevents this invocation.

    The last attempt is running, or it is unfinished, has results and has other settings. An attempt
    without results, such as one that failed because of a wrong setting, leaves the name free.
    """
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
    changes = [] if new_attempt else _setting_changes(last, settings)
    if changes and _has_results(client, last):
        raise TrackingError(
            f"{name} is unfinished and its settings have changed: {'; '.join(changes)}; use the "
            "old settings to resume it, --new-attempt to start from scratch, or another name"
        )


def _setting_changes(run: MlflowRun, settings: Mapping[str, str]) -> list[str]:
    """Return the differences between a run's settings and new ones."""
    if not _has_parameters(run):
        return []
    logged = run.data.params
    return [
        f"{key}: {logged.get(key, '(none)')} -> {value}"
        for key, value in settings.items()
        if logged.get(key) != value[:PARAM_LENGTH]
    ]


def _has_results(client: MlflowClient, run: MlflowRun) -> bool:
    """Return whether a run has metrics of an epoch, a checkpoint, or trials."""
    if has_reported(client, run):
        return True
    condition = f"tags.`{PARENT_RUN_TAG}` = '{run.info.run_id}'"
    return bool(client.search_runs([run.info.experiment_id], condition, max_results=1))


def _find_or_create_experiment(client: MlflowClient, uri: str) -> str:
    experiment = find_experiment(client, uri)
    if experiment is None:
        try:
            return create_experiment(client, EXPERIMENT, uri)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Another driver created the experiment at the same time.
        experiment = find_experiment(client, uri)
    assert experiment is not None
    return experiment.experiment_id


def _report_deleted(client: MlflowClient, experiment_id: str, name: str) -> None:
    """Log that the runs of a name were deleted, as their checkpoints may still be wanted."""
    deleted = client.search_runs(
        [experiment_id],
        f"tags.`{NAME_TAG}` = '{name}'",
        run_view_type=ViewType.DELETED_ONLY,
        max_results=1,
    )
    if deleted:
        logger.warning(
            "%s starts from scratch; to resume the previous attempt instead: %s, then start again",
            name,
            deleted_message("run", deleted[0].info.run_id),
        )


def _check_claim(
    client: MlflowClient, experiment_id: str, record: TrackedRun, lease: Lease
) -> None:
    """Reject this invocation if another driver claimed the same attempt."""
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
