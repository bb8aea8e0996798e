"""Which run a name means, and that nothing measured is lost or doubled."""

import json
import shutil
import socket
import subprocess
import time
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
from cluster.execution.mlflow_callback import MlflowCallback
from cluster.tracking import runs as tracking
from cluster.tracking.runs import MetricWriter, TrackedRun, check_startable, provenance, start

OURS = mlflow.__version__.split(".")
SETTINGS = {"model.scales": "[1, 2, 3]", "train.optim.lr": "0.1"}


@pytest.fixture(autouse=True)
def client(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MlflowClient]:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(tracking, "SETTLE_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    yield MlflowClient(uri)
    mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType] - MLflow's own way back


def begin(name="digits", settings=SETTINGS, fresh=False, parameters=None):
    return start(
        name,
        settings=settings,
        parameters=parameters or {},
        tags={},
        config_text=f"name: {name}\n",
        fresh=fresh,
    )


def status(client: MlflowClient, record: TrackedRun) -> str:
    return client.get_run(record.run_id).info.status


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def hand_over(client: MlflowClient, process: subprocess.Popen[bytes], **changes) -> TrackedRun:
    """Open a run and leave it as if another process drove it."""
    with begin() as record:
        pass
    lease = tracking._Lease.of_this_process()
    started = tracking._process_start(process.pid)
    lease = replace(lease, pid=process.pid, started=started, **changes)
    client.set_tag(record.run_id, tracking._LEASE, json.dumps(asdict(lease)))
    client.update_run(record.run_id, status="RUNNING")
    return record


def test_a_finished_name_starts_a_new_attempt_with_new_storage(client):
    with begin() as first:
        assert status(client, first) == "RUNNING"
    with begin() as second:
        pass
    assert (first.attempt, second.attempt) == (1, 2)
    assert not second.resumed
    assert first.run_id != second.run_id
    assert first.storage_name != second.storage_name
    assert status(client, first) == status(client, second) == "FINISHED"


def test_storage_is_new_even_where_the_database_was_deleted(client, tmp_path, empty_database):
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
def test_an_unfinished_name_goes_on_in_its_run_and_its_storage(client, error, state):
    with pytest.raises(error), begin() as first:
        raise error
    assert status(client, first) == state
    with begin() as second:
        assert status(client, second) == "RUNNING"
    assert second.resumed
    assert (second.run_id, second.storage_name) == (first.run_id, first.storage_name)
    assert status(client, first) == "FINISHED"


def test_changed_settings_under_an_unfinished_name_are_refused_with_the_difference(client):
    with pytest.raises(RuntimeError), begin() as first:
        raise RuntimeError
    changed = {**SETTINGS, "train.optim.lr": "0.3", "data.augment.flip": "true"}
    with pytest.raises(TrackingError) as refusal, begin(settings=changed):
        pass
    assert "train.optim.lr: 0.1 -> 0.3; data.augment.flip: (none) -> true;" in str(refusal.value)
    assert "model.scales" not in str(refusal.value)
    assert "--new-attempt" in str(refusal.value)
    with pytest.raises(TrackingError) as before_it_opens:
        check_startable("digits", settings=changed)
    assert str(before_it_opens.value) == str(refusal.value)
    assert status(client, first) == "FAILED"
    check_startable("digits", settings=SETTINGS)
    check_startable("digits", settings=changed, fresh=True)
    check_startable("another", settings=changed)


@contextmanager
def killed_before_settings_are_written(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the driver die after the first of the two calls that open a run."""

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", die)
        yield


def test_a_run_whose_driver_was_killed_before_its_settings_were_written_gets_them(
    client, monkeypatch
):
    with killed_before_settings_are_written(monkeypatch), pytest.raises(SystemExit):
        begin(parameters={"cluster.num_workers": "1"}).__enter__()
    [left] = client.search_runs([client.get_experiment_by_name("ranet").experiment_id])
    assert left.data.params == {}
    # As a dead process leaves it.
    lease = replace(tracking._Lease.of_this_process(), started=0)
    client.set_tag(left.info.run_id, tracking._LEASE, json.dumps(asdict(lease)))
    with begin(parameters={"cluster.num_workers": "2"}) as record:
        assert (record.run_id, record.resumed) == (left.info.run_id, True)
    assert client.get_run(record.run_id).data.params == {**SETTINGS, "cluster.num_workers": "2"}


def test_settings_that_are_free_may_change(client):
    with pytest.raises(RuntimeError), begin(parameters={"cluster.num_workers": "1"}):
        raise RuntimeError
    with begin(parameters={"cluster.num_workers": "2"}) as second:
        assert second.resumed


def test_fresh_gives_up_an_unfinished_run(client):
    with pytest.raises(KeyboardInterrupt), begin() as first:
        raise KeyboardInterrupt
    with begin(settings={"other": "1"}, fresh=True) as second:
        pass
    assert second.attempt == 2
    assert status(client, first) == "KILLED"
    with begin() as third:
        assert third.attempt == 3


@pytest.mark.parametrize("fresh", [False, True])
def test_a_name_whose_driver_lives_is_refused_at_once(client, other_process, fresh):
    record = hand_over(client, other_process)
    began = time.monotonic()
    with pytest.raises(TrackingError, match=f"is running .process {other_process.pid} .*wait for"):
        begin(fresh=fresh).__enter__()
    with pytest.raises(TrackingError, match="is running"):
        check_startable("digits", settings=SETTINGS, fresh=fresh)
    assert time.monotonic() - began < 5
    with begin("another"):
        assert status(client, record) == "RUNNING"


def test_a_run_whose_driver_was_killed_is_put_right_by_the_next_start_of_any_name(
    client, other_process
):
    record = hand_over(client, other_process)
    other_process.kill()  # not waited for yet: a zombie is no living driver
    while tracking._process_start(other_process.pid) is not None:
        time.sleep(0.01)
    with begin("another"):
        assert status(client, record) == "KILLED"
    with begin() as again:
        assert again.resumed
        assert again.run_id == record.run_id


def test_a_process_that_got_the_number_of_a_dead_driver_is_not_the_driver(client, other_process):
    record = hand_over(client, other_process)
    lease = tracking._Lease.of_run(client.get_run(record.run_id))
    assert lease is not None
    earlier = replace(lease, started=lease.started - 1)
    client.set_tag(record.run_id, tracking._LEASE, json.dumps(asdict(earlier)))
    with begin() as again:
        assert again.run_id == record.run_id


@pytest.mark.parametrize(("silence", "is_refused"), [(10, True), (200, False)])
def test_a_driver_on_another_host_counts_as_dead_after_a_silence(
    client, other_process, silence, is_refused
):
    record = hand_over(client, other_process, host="elsewhere/boot", beat=time.time() - silence)
    if is_refused:
        with pytest.raises(TrackingError, match="on elsewhere"):
            begin().__enter__()
        assert status(client, record) == "RUNNING"
    else:
        with begin() as again:
            assert again.run_id == record.run_id


def test_a_living_driver_gives_signs_of_life(client, monkeypatch):
    monkeypatch.setattr(tracking, "BEAT_SECONDS", 0.05)
    with begin() as record:
        first = tracking._Lease.of_run(client.get_run(record.run_id))
        deadline = time.monotonic() + 10
        while tracking._Lease.of_run(client.get_run(record.run_id)) == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_machine_of_the_driver_is_measured(client, monkeypatch):
    monkeypatch.setattr(tracking, "BEAT_SECONDS", 0.05)
    with begin() as record:
        deadline = time.monotonic() + 20
        while "system/cpu_utilization_percentage" not in client.get_run(record.run_id).data.metrics:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    metrics = client.get_run(record.run_id).data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100


def test_a_driver_thought_dead_puts_its_state_right(client, monkeypatch):
    monkeypatch.setattr(tracking, "BEAT_SECONDS", 0.05)
    with begin() as record:
        client.set_terminated(record.run_id, "KILLED")
        deadline = time.monotonic() + 10
        while status(client, record) != "RUNNING":
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_driver_whose_run_another_one_has_taken_stops_and_leaves_its_state_alone(
    client, monkeypatch
):
    monkeypatch.setattr(tracking, "BEAT_SECONDS", 0.1)
    taker = tracking._Lease.of_this_process()
    records = []
    with pytest.raises(TrackingError, match="digits was taken over"), begin() as record:  # noqa: PT012
        records.append(record)
        for _ in range(600):
            client.set_tag(record.run_id, tracking._LEASE, taker.text())
            time.sleep(0.1)
    assert status(client, records[0]) == "RUNNING"
    holder = tracking._Lease.of_run(client.get_run(records[0].run_id))
    assert holder is not None
    assert holder.token == taker.token


def test_no_message_shows_a_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(
        TrackingError, match=r"http://\*\*\*@127\.0\.0\.1:9, with a password"
    ) as told:
        begin().__enter__()
    assert "secret" not in str(told.value)
    error = OSError("API request to http://user:secret@host/api failed: postgresql://u:p@db/x")
    assert (
        tracking._sentence(error)
        == "API request to http://***@host/api failed: postgresql://***@db/x"
    )


@pytest.mark.parametrize("version", ["2.99.0", f"{OURS[0]}.{int(OURS[1]) - 1}.9", "<html>no", ""])
def test_a_server_that_may_not_know_what_we_ask_for_is_refused(version):
    with pytest.raises(TrackingError, match=r"is version .*: install .*MLFLOW_TRACKING_URI"):
        tracking._check_version("http://mlflow", version)


@pytest.mark.parametrize("version", [mlflow.__version__, f"{OURS[0]}.{int(OURS[1]) + 1}.0rc1"])
def test_a_server_of_our_version_or_a_newer_one_is_taken(version):
    tracking._check_version("http://mlflow", version)


@pytest.mark.parametrize("is_unfinished", [False, True])
def test_of_two_drivers_that_start_at_once_one_gives_way(client, monkeypatch, is_unfinished):
    with begin("another"):  # the experiment exists
        pass
    if is_unfinished:
        with pytest.raises(RuntimeError), begin():
            raise RuntimeError
    monkeypatch.setattr(tracking, "SETTLE_SECONDS", 3.0)
    barrier, here, look = Barrier(2), local(), tracking._last_attempt

    def look_together(*arguments):
        """Look for the last attempt, the first time when the other thread does so too."""
        found = look(*arguments)
        if not hasattr(here, "has_looked"):
            here.has_looked = True
            barrier.wait(timeout=30)
        return found

    monkeypatch.setattr(tracking, "_last_attempt", look_together)

    def drive() -> str:
        try:
            with begin():
                return "ran"
        except TrackingError as refusal:
            return str(refusal)

    with ThreadPoolExecutor() as pool:
        outcomes = sorted(future.result() for future in [pool.submit(drive) for _ in range(2)])
    assert "at the same time" in outcomes[0]
    assert outcomes[1] == "ran"
    runs = client.search_runs(["1"], "tags.`ranet.name` = 'digits'")
    assert [run.info.status for run in runs] == ["FINISHED"]


def test_settings_config_and_provenance_are_kept(client, tmp_path):
    tags = provenance()
    assert tags["version.torch"]
    assert tags["python"].startswith("3.")
    with start(
        "digits", settings=SETTINGS, parameters={"cluster.num_workers": "2"}, tags=tags,
        config_text="name: digits\n",
    ) as record:  # fmt: skip
        run = client.get_run(record.run_id)
    assert run.data.params == {**SETTINGS, "cluster.num_workers": "2"}
    assert tags.items() <= run.data.tags.items()
    path = client.download_artifacts(record.run_id, "config.yaml", str(tmp_path))
    assert Path(path).read_text() == "name: digits\n"


def test_an_unreachable_server_is_refused_in_seconds(monkeypatch):
    with socket.socket() as taken:  # bound, but nobody answers
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(TrackingError, match=r"does not answer .*MLFLOW_TRACKING_URI"):
            begin().__enter__()
        assert time.monotonic() - began < 10


def test_a_file_that_is_no_database_is_refused(monkeypatch, tmp_path):
    (tmp_path / "text.db").write_text("no database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(TrackingError, match=r"text.db cannot be used: .*file is not a database"):
        begin().__enter__()


def history(epochs: int) -> list[dict[str, float]]:
    return [{"epoch": float(k), "train/loss": 1 / k} for k in range(1, epochs + 1)]


def logged(client: MlflowClient, record: TrackedRun) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(record.run_id, "train/loss")]


def test_metrics_are_sent_from_a_thread_and_no_step_twice(client):
    with begin() as record:
        writer = MetricWriter(record, keep_checkpoints=2)
        for metrics in history(3):
            writer.put(metrics)
        assert writer.flush(timeout=30)
        again = MetricWriter(record, keep_checkpoints=2)
        for metrics in history(4):
            again.put(metrics)
        assert again.flush(timeout=30)
        record.log_history(history(5))
        record.log_history(history(5))
    assert logged(client, record) == [(k, 1 / k) for k in range(1, 6)]


def test_the_last_epoch_is_with_mlflow_before_the_controller_ends(client, monkeypatch):
    log_batch = MlflowClient.log_batch

    def slow(*arguments, **named):
        time.sleep(0.2)
        return log_batch(*arguments, **named)

    with begin() as record:
        monkeypatch.setattr(MlflowClient, "log_batch", slow)
        callback = MlflowCallback(record, keep_checkpoints=1, last_epoch=2)
        for metrics in history(2):
            callback.after_report(None, [metrics | {"earlier": []}], None)
        assert len(logged(client, record)) == 2
        began = time.monotonic()
        record.log_history(history(2))
        assert time.monotonic() - began < 1  # there is nothing to wait for


def test_the_newest_checkpoints_are_noted_with_step_metrics_and_location(client, tmp_path):
    with begin() as record:
        for k in range(1, 4):
            record.log_checkpoint({"epoch": k, "val/loss": 1 / k}, f"/runs/{k}", keep=2)
        record.log_checkpoint({"epoch": 3, "val/loss": 1 / 3}, "/runs/3 with scores", keep=2)
    assert noted(client, record, tmp_path) == [
        {"step": 2, "location": "/runs/2", "metrics": {"epoch": 2, "val/loss": 0.5}},
        {"step": 3, "location": "/runs/3 with scores", "metrics": {"epoch": 3, "val/loss": 1 / 3}},
    ]


def test_a_checkpoint_within_an_epoch_is_noted_and_logged_as_no_epoch(client, tmp_path):
    with begin() as record:
        writer = MetricWriter(record, keep_checkpoints=3)
        for epoch, step in ((0, 5), (1, 0), (1, 5), (1, 5), (1, 9)):
            within = {"epoch": float(epoch), "step": float(step)}
            metrics = within if step else history(epoch)[-1]
            writer.put(metrics, f"/runs/{epoch}-{step}")
        assert writer.flush(timeout=30)
    assert logged(client, record) == [(1, 1)]
    places = [each["location"] for each in noted(client, record, tmp_path)]
    assert places == ["/runs/1-0", "/runs/1-5", "/runs/1-9"]


def noted(client, record, folder) -> list[dict]:
    path = client.download_artifacts(record.run_id, "checkpoints.json", str(folder))
    return json.loads(Path(path).read_text())


def test_a_writer_warns_once_and_delivers_when_mlflow_answers_again(client, tmp_path, caplog):
    with begin() as record:
        hidden = tmp_path / "artifacts hidden"
        database = tmp_path / "mlflow.db"
        client._tracking_client.store.engine.dispose()
        database.rename(hidden)
        database.mkdir()  # what SQLite cannot open
        writer = MetricWriter(record, keep_checkpoints=2, retry_seconds=0.1)
        for metrics in history(3):
            writer.put(metrics)
        time.sleep(1.5)
        database.rmdir()
        hidden.rename(database)
        assert writer.flush(timeout=60)
    assert logged(client, record) == [(k, 1 / k) for k in range(1, 4)]
    warnings = [each.message for each in caplog.records if "does not answer" in each.message]
    assert len(warnings) == 1


def open_trial(parent: TrackedRun, number: int) -> TrackedRun:
    return tracking.open_child(
        parent, f"digits-1-{number}", parameters=SETTINGS, tags={"n": str(number)}
    )


def test_the_children_of_a_dead_driver_are_closed_with_their_parent(client, other_process):
    parent = hand_over(client, other_process)
    done, cut = (open_trial(parent, number) for number in (1, 2))
    tracking.close_child(done, "FINISHED")
    with begin("another"):
        assert status(client, cut) == "RUNNING"
    other_process.kill()
    other_process.wait()
    with begin("another"):
        assert status(client, parent) == "KILLED"
        assert status(client, cut) == "KILLED"
        assert status(client, done) == "FINISHED"


def test_a_child_goes_on_in_its_own_run_and_storage(client):
    with begin() as parent:
        first = open_trial(parent, 1)
        tracking.close_child(first, "KILLED")
        [found] = tracking.children(parent.uri, parent.run_id)
        again = tracking.reopen_child(parent, found, parameters={"train.optim.lr": "0.3"})
        assert again == replace(first, resumed=True)
        assert client.get_run(again.run_id).data.params == SETTINGS
        assert again.storage_name == first.storage_name
        assert status(client, again) == "RUNNING"
        last = tracking.last_attempt("digits")
        assert last is not None
        assert last.info.run_id == parent.run_id
        assert tracking.last_attempt("nothing") is None


def test_a_child_whose_driver_was_killed_before_its_settings_were_written_gets_them(
    client, monkeypatch
):
    with begin() as parent:
        with killed_before_settings_are_written(monkeypatch), pytest.raises(SystemExit):
            open_trial(parent, 1)
        [left] = tracking.children(parent.uri, parent.run_id)
        assert left.data.params == {}
        tracking.reopen_child(parent, left, parameters=SETTINGS)
        [again] = tracking.children(parent.uri, parent.run_id)
    assert again.info.run_id == left.info.run_id
    assert again.data.params == SETTINGS
