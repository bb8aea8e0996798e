"""What is refused before Ray is asked for anything."""

import os
import signal
import socket

import pytest
from ray.exceptions import RayActorError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from cluster.config import ClusterConfig
from cluster.launch import (
    RunError,
    _cause,
    connected,
    interface_of,
    resolve_storage,
    worker_environment,
)
from cluster.tracking import TrackingError, check_reachable
from pipelines.run import one_sentence
from ranet.training.optim import NonFiniteLoss


@pytest.fixture
def submitted_job(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_relative_storage_lies_below_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_storage("outputs/runs") == str(tmp_path / "outputs" / "runs")
    assert list((tmp_path / "outputs" / "runs").iterdir()) == []


def test_an_address_is_left_as_it_is():
    assert resolve_storage("s3://bucket/runs") == "s3://bucket/runs"


def test_a_submitted_job_must_say_where_its_results_go(submitted_job, tmp_path):
    with pytest.raises(ValueError, match=r"cluster.storage is outputs/runs: a submitted job"):
        resolve_storage("outputs/runs")
    assert list(tmp_path.iterdir()) == []
    assert resolve_storage(str(tmp_path / "runs")) == str(tmp_path / "runs")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI is not set: a submitted job"):
        check_reachable()


def test_a_submitted_job_may_use_a_database_outside_its_folder(
    submitted_job, monkeypatch, tmp_path_factory
):
    database = tmp_path_factory.mktemp("database") / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    check_reachable()


def test_storage_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cluster.storage is .*: cannot write to .*Not a direct"):
        resolve_storage(str(tmp_path / "file" / "runs"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")  # noqa: PTH110
def test_full_storage_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: PTH123, SIM115
    with pytest.raises(ValueError, match="No space left on device"):
        resolve_storage(str(tmp_path))


def test_a_ray_address_at_which_nobody_answers_is_refused_at_once(monkeypatch):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RunError, match=rf"RAY_ADDRESS is {address}: no cluster answers"):
            connected(ClusterConfig()).__enter__()


def test_gloo_is_told_the_interface_of_the_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") == "lo"  # nobody's
    names = {name for _, name in socket.if_nameindex()}
    assert worker_environment(ClusterConfig())["GLOO_SOCKET_IFNAME"] in names


def test_an_interface_that_the_user_chose_is_kept(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert worker_environment(ClusterConfig()) == {"OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ValueError("data.root is wrong"), 1, "error: data.root is wrong\n"),
        (RunError("worker 1 failed: it"), 1, "error: worker 1 failed: it\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "error: [Errno 2] No such file: 'x'\n"),
        (KeyboardInterrupt(), 130, "stopped; start it again under the same name to go on\n"),
    ],
)
def test_an_error_of_the_user_ends_with_one_sentence(error, status, sentence, capsys):
    with pytest.raises(SystemExit) as ending, one_sentence():
        raise error
    assert ending.value.code == status
    assert capsys.readouterr().err == sentence


def test_sigterm_ends_as_ctrl_c_does(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ending, one_sentence():
        signal.raise_signal(signal.SIGTERM)
    assert ending.value.code == 130
    assert capsys.readouterr().err.startswith("stopped;")
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError), one_sentence():
        raise KeyError("a bug")


LOST = WorkerHealthCheckFailedError("it does not answer", RayActorError())
ALONE = RuntimeError("connection closed by peer")


@pytest.mark.parametrize(
    ("failures", "sentence"),
    [
        ({0: ALONE, 1: ValueError("bad image 7")}, "worker 1 failed: bad image 7"),
        ({0: LOST, 1: NonFiniteLoss("the loss is nan")}, "worker 1 failed: the loss is nan"),
        ({0: ALONE, 1: LOST}, "worker 1 was lost: it was killed"),
        ({1: ALONE, 0: ALONE}, "worker 0 failed: connection closed by peer"),
    ],
)
def test_of_several_failed_workers_the_cause_is_told(failures, sentence):
    error = WorkerGroupError("all of it", failures)
    assert _cause(error, ClusterConfig()).startswith(sentence)


def test_an_unexpected_error_of_a_worker_is_logged_with_its_traceback(caplog):
    error = WorkerGroupError("Traceback of it", {0: KeyError("a bug")})
    assert _cause(error, ClusterConfig()) == "worker 0 failed: 'a bug'"
    assert "Traceback of it" in caplog.text
