"""Attempts of a name: new, resumed and rejected ones, and child runs."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier, local

import mlflow
import pytest
from mlflow import MlflowClient

from cluster.errors import TrackingError
from cluster.tracking import runs
from cluster.tracking.lease import LEASE_TAG, Lease
from cluster.tracking.provenance import provenance_tags
from cluster.tracking.record import TrackedRun
from cluster.tracking.runs import check_can_start, open_run
from tests.support.tracking import SETTINGS, begin, hand_over, status


def test_finished_name_starts_a_new_attempt_with_new_storage(client):
    with begin() as first:
        assert status(client, first) == "RUNNING"
    with begin() as second:
        pass
    assert (first.attempt, second.attempt) == (1, 2)
    assert not second.resumed
    assert first.run_id != second.run_id
    assert first.storage_name != second.storage_name
    assert status(client, first) == status(client, second) == "FINISHED"


def test_new_database_gives_a_new_storage_folder(client, tmp_path, empty_database):
    with begin() as first:
        pass
    client._tracking_client.store.engine.dispose()
    shutil.copy(empty_database, tmp_path / "other.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
    with begin() as second:
        pass
    assert first.attempt == second.attempt == 1
    assert first.storage_name != second.storage_name


@pytest.mark.parametrize(
    ("error", "state"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_unfinished_name_resumes_its_run_and_storage(client, error, state):
    with pytest.raises(error), begin() as first:
        raise error
    assert status(client, first) == state
    with begin() as second:
        assert status(client, second) == "RUNNING"
    assert second.resumed
    assert (second.run_id, second.storage_name) == (first.run_id, first.storage_name)
    assert status(client, first) == "FINISHED"


def test_changed_settings_of_an_unfinished_name_are_rejected_with_the_difference(client):
    with pytest.raises(RuntimeError), begin() as first:  # noqa: PT012
        first.log_history([{"epoch": 1.0}])
        raise RuntimeError
    changed = {**SETTINGS, "train.optim.lr": "0.3", "data.augment.flip": "true"}
    with pytest.raises(TrackingError) as caught, begin(settings=changed):
        pass
    assert "train.optim.lr: 0.1 -> 0.3; data.augment.flip: (none) -> true;" in str(caught.value)
    assert "model.scales" not in str(caught.value)
    assert "--new-attempt" in str(caught.value)
    with pytest.raises(TrackingError) as before_it_opens:
        check_can_start("digits", settings=changed)
    assert str(before_it_opens.value) == str(caught.value)
    assert status(client, first) == "FAILED"
    check_can_start("digits", settings=SETTINGS)
    check_can_start("digits", settings=changed, new_attempt=True)
    check_can_start("another", settings=changed)


def report_epoch(record: TrackedRun) -> None:
    record.log_history([{"epoch": 1.0}])


def report_checkpoint(record: TrackedRun) -> None:
    record.log_checkpoint({"epoch": 0.0, "step": 3.0}, "/runs/x", keep=2)


def report_trial(record: TrackedRun) -> None:
    open_trial(record, 1)


def report_machine(record: TrackedRun) -> None:
    record.client.log_metric(record.run_id, "system/cpu_utilization_percentage", 5.0)


@pytest.mark.parametrize("report", [report_epoch, report_checkpoint, report_trial])
def test_attempt_with_results_binds_its_name(client, report):
    with pytest.raises(RuntimeError), begin() as first:  # noqa: PT012
        report(first)
        raise RuntimeError
    with pytest.raises(TrackingError, match="settings have changed"):
        begin(settings={**SETTINGS, "train.optim.lr": "0.3"}).__enter__()


@pytest.mark.parametrize("report", [lambda _: None, report_machine])
def test_attempt_without_results_leaves_its_name_free(client, report):
    with pytest.raises(RuntimeError), begin() as first:  # noqa: PT012
        report(first)
        raise RuntimeError
    changed = {**SETTINGS, "train.optim.lr": "0.3"}
    check_can_start("digits", settings=changed)
    with begin(settings=changed) as second:
        pass
    assert (second.attempt, second.resumed) == (2, False)
    assert client.get_run(second.run_id).data.params == changed
    assert status(client, first) == "FAILED"


def test_deleted_run_is_named_with_the_command_that_restores_it(client, caplog):
    with pytest.raises(RuntimeError), begin() as first:
        raise RuntimeError
    client.delete_run(first.run_id)
    with caplog.at_level("WARNING"), begin() as second:
        assert not second.resumed
    assert f"mlflow runs restore --run-id {first.run_id}" in caplog.text


def test_deleted_experiment_is_rejected_with_the_command_that_restores_it(client, monkeypatch):
    with begin():
        pass
    experiment_id = client.get_experiment_by_name("ranet").experiment_id
    client.delete_experiment(experiment_id)
    restore = f"mlflow experiments restore --experiment-id {experiment_id}"
    with pytest.raises(TrackingError, match=restore):
        check_can_start("digits", settings=SETTINGS)
    with pytest.raises(TrackingError, match=restore):
        begin().__enter__()
    subprocess.run([sys.executable, "-m", *restore.split()], check=True, timeout=120)
    with begin():
        pass


@contextmanager
def killed_before_settings_are_written(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the driver die between the two calls that open a run."""

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", die)
        yield


def test_run_killed_before_its_settings_were_logged_gets_them_when_resumed(client, monkeypatch):
    with killed_before_settings_are_written(monkeypatch), pytest.raises(SystemExit):
        begin(parameters={"cluster.num_workers": "1"}).__enter__()
    [left] = client.search_runs([client.get_experiment_by_name("ranet").experiment_id])
    assert left.data.params == {}
    # As a dead process leaves it.
    lease = replace(Lease.of_this_process(), started=0)
    client.set_tag(left.info.run_id, LEASE_TAG, json.dumps(asdict(lease)))
    with begin(parameters={"cluster.num_workers": "2"}) as record:
        assert (record.run_id, record.resumed) == (left.info.run_id, True)
    assert client.get_run(record.run_id).data.params == {**SETTINGS, "cluster.num_workers": "2"}


def test_parameters_that_are_not_settings_may_change_on_resume(client):
    with pytest.raises(RuntimeError), begin(parameters={"cluster.num_workers": "1"}):
        raise RuntimeError
    with begin(parameters={"cluster.num_workers": "2"}) as second:
        assert second.resumed


def test_new_attempt_leaves_an_unfinished_run_as_it_is(client):
    with pytest.raises(KeyboardInterrupt), begin() as first:
        raise KeyboardInterrupt
    with begin(settings={"other": "1"}, new_attempt=True) as second:
        pass
    assert second.attempt == 2
    assert status(client, first) == "KILLED"
    with begin() as third:
        assert third.attempt == 3


@pytest.mark.parametrize("is_unfinished", [False, True])
def test_second_of_two_simultaneous_drivers_is_rejected(client, monkeypatch, is_unfinished):
    with begin("another"):  # the experiment exists
        pass
    if is_unfinished:
        with pytest.raises(RuntimeError), begin():
            raise RuntimeError
    monkeypatch.setattr(runs, "SETTLE_SECONDS", 3.0)
    barrier, here, look = Barrier(2), local(), runs.find_last_attempt

    def look_together(*arguments):
        """Search for the last attempt at the same time as another thread."""
        found = look(*arguments)
        if not hasattr(here, "has_looked"):
            here.has_looked = True
            barrier.wait(timeout=30)
        return found

    monkeypatch.setattr(runs, "find_last_attempt", look_together)

    def drive() -> str:
        try:
            with begin():
                return "ran"
        except TrackingError as caught:
            return str(caught)

    with ThreadPoolExecutor() as pool:
        outcomes = sorted(future.result() for future in [pool.submit(drive) for _ in range(2)])
    assert "at the same time" in outcomes[0]
    assert outcomes[1] == "ran"
    found = client.search_runs(["1"], "tags.`ranet.name` = 'digits'")
    assert [run.info.status for run in found] == ["FINISHED"]


def test_settings_config_and_provenance_are_logged(client, tmp_path):
    tags = provenance_tags()
    assert tags["version.torch"]
    assert tags["python"].startswith("3.")
    with open_run(
        "digits", settings=SETTINGS, parameters={"cluster.num_workers": "2"}, tags=tags,
        config_text="name: digits\n",
    ) as record:  # fmt: skip
        run = client.get_run(record.run_id)
    assert run.data.params == {**SETTINGS, "cluster.num_workers": "2"}
    assert tags.items() <= run.data.tags.items()
    path = client.download_artifacts(record.run_id, "config.yaml", str(tmp_path))
    assert Path(path).read_text() == "name: digits\n"


def open_trial(parent: TrackedRun, number: int) -> TrackedRun:
    return runs.open_child(
        parent, f"digits-1-{number}", parameters=SETTINGS, tags={"n": str(number)}
    )


def test_child_runs_of_a_dead_driver_are_closed_with_their_parent(client, other_process):
    parent = hand_over(client, other_process)
    done, cut = (open_trial(parent, number) for number in (1, 2))
    runs.close_child(done, "FINISHED")
    with begin("another"):
        assert status(client, cut) == "RUNNING"
    other_process.kill()
    other_process.wait()
    with begin("another"):
        assert status(client, parent) == "KILLED"
        assert status(client, cut) == "KILLED"
        assert status(client, done) == "FINISHED"


def test_reopened_child_run_keeps_its_run_and_storage(client):
    with begin() as parent:
        first = open_trial(parent, 1)
        runs.close_child(first, "KILLED")
        [found] = runs.children(parent.uri, parent.run_id)
        again = runs.reopen_child(parent, found, parameters={"train.optim.lr": "0.3"})
        assert again == replace(first, resumed=True)
        assert client.get_run(again.run_id).data.params == SETTINGS
        assert again.storage_name == first.storage_name
        assert status(client, again) == "RUNNING"
        last = runs.last_attempt("digits")
        assert last is not None
        assert last.info.run_id == parent.run_id
        assert runs.last_attempt("nothing") is None


def test_child_run_killed_before_its_settings_were_logged_gets_them_when_reopened(
    client, monkeypatch
):
    with begin() as parent:
        with killed_before_settings_are_written(monkeypatch), pytest.raises(SystemExit):
            open_trial(parent, 1)
        [left] = runs.children(parent.uri, parent.run_id)
        assert left.data.params == {}
        runs.reopen_child(parent, left, parameters=SETTINGS)
        [again] = runs.children(parent.uri, parent.run_id)
    assert again.info.run_id == left.info.run_id
    assert again.data.params == SETTINGS
