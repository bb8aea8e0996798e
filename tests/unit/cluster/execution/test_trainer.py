"""What is refused before Ray is asked for anything."""

import logging
import math
import os
import signal
import socket
from unittest.mock import Mock

import pytest
import torch
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from cluster.config import ClusterConfig
from cluster.errors import RunError, TrackingError, UntrainableError
from cluster.execution.heartbeat import HeartbeatActor
from cluster.execution.trainer import (
    FailurePolicy,
    _work,
    connected,
    interface_of,
    worker_environment,
)
from cluster.storage.filesystem import resolve_storage
from cluster.tracking.client import check_reachable
from pipelines.run import PACKAGES, configure_logging, main_guard
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


def test_an_address_of_another_kind_is_left_to_ray():
    for address in ("gs://bucket/runs", "s3://bucket/runs?region=eu-west-1"):
        assert resolve_storage(address) == address


def test_a_bucket_without_a_folder_is_refused():
    with pytest.raises(
        ValueError, match=r"cluster.storage_path must be a path or s3://bucket/folder"
    ):
        resolve_storage("s3://bucket")


def test_a_submitted_job_must_say_where_its_results_go(submitted_job, tmp_path):
    with pytest.raises(ValueError, match=r"cluster.storage_path is outputs/runs: .* of a submitted job"):
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
    with pytest.raises(
        ValueError, match=r"cluster.storage_path is .*: cannot write to .*Not a direct"
    ):
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
    assert "GLOO_SOCKET_IFNAME" not in worker_environment(ClusterConfig())


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ValueError("data.source_dir is wrong"), 1, "error: data.source_dir is wrong\n"),
        (RunError("worker 1 failed: it"), 1, "error: worker 1 failed: it\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "error: [Errno 2] No such file: 'x'\n"),
        (KeyboardInterrupt(), 130, "stopped; start it again under the same name to go on\n"),
    ],
)
def test_an_error_of_the_user_ends_with_one_sentence(error, status, sentence, capsys):
    with pytest.raises(SystemExit) as ending, main_guard():
        raise error
    assert ending.value.code == status
    assert capsys.readouterr().err == sentence


def test_sigterm_ends_as_ctrl_c_does(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ending, main_guard():
        signal.raise_signal(signal.SIGTERM)
    assert ending.value.code == 130
    assert capsys.readouterr().err.startswith("stopped;")
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_of_ours_keeps_its_traceback():
    with pytest.raises(KeyError), main_guard():
        raise KeyError("a bug")


LOST = WorkerHealthCheckFailedError("it does not answer", RayActorError())
ALONE = RuntimeError("connection closed by peer")
FULL = OSError(28, "No space left on device")


def told(failures, **settings):
    """What is told of the failures of one worker group, in the log or at the end."""
    decide = FailurePolicy(ClusterConfig(**settings), "s3://bucket/runs")
    with pytest.raises(RunError) as ending:
        decide.after_exception(None, failures)
    return str(ending.value)


@pytest.mark.parametrize(
    ("failures", "sentence"),
    [
        ({0: ALONE, 1: ValueError("bad image 7")}, "worker 1 failed: bad image 7"),
        ({0: LOST, 1: NonFiniteLoss("the loss is nan")}, "worker 1 failed: the loss is nan"),
        ({0: ALONE, 1: KeyError("a bug")}, "worker 1 failed: KeyError: 'a bug'"),
        ({0: ALONE, 1: LOST}, "worker 1 was lost: it was killed"),
        ({1: ALONE, 0: ALONE}, "worker 0 lost the connection to another one (connection closed"),
    ],
)
def test_of_several_failed_workers_the_cause_is_told(failures, sentence):
    assert told(failures, max_consecutive_failures=0).startswith(sentence)


@pytest.mark.parametrize("cause", [ValueError("bad"), NonFiniteLoss("the loss is nan"), FULL])
def test_what_would_fail_again_is_not_tried_again(cause):
    assert told({0: cause}, max_consecutive_failures=3).startswith("worker 0 failed: ")


def refused_memory() -> RuntimeError:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 56)
    return refused.value


def test_memory_that_a_cpu_refuses_is_named_with_what_needs_less():
    sentence = told({0: refused_memory()}, max_consecutive_failures=3)
    assert sentence.startswith("worker 0 failed: not enough memory: [enforce fail")
    assert "you tried to allocate" in sentence
    assert sentence.endswith("a smaller model or train.batch_size needs less")


def test_a_full_disk_names_the_setting_to_change():
    assert "free space in cluster.storage_path, s3://bucket/runs, or in" in told({0: FULL})


def test_lost_nodes_end_no_run_that_makes_progress(caplog):
    decide = FailurePolicy(ClusterConfig(max_consecutive_failures=2), "runs")
    for _ in range(5):
        decide.after_exception(None, {0: LOST})
        decide.after_exception(None, {0: ALONE})
        decide.after_report(None, [{}], None)
    assert "failure 2 in a row" in caplog.text
    decide.after_exception(None, {0: LOST})
    decide.after_exception(None, {0: LOST})
    with pytest.raises(
        RunError, match=r"was lost: .* failure 3 in a row .*max_consecutive_failures is 2"
    ):
        decide.after_exception(None, {0: LOST})


def test_a_node_taken_with_notice_is_no_failure():
    decide = FailurePolicy(ClusterConfig(max_consecutive_failures=0), "runs")
    taken = RayActorError(error_msg="a node was taken", preempted=True)
    for failure in (taken, WorkerHealthCheckFailedError("it does not answer", taken)):
        decide.after_exception(None, {0: ALONE, 1: failure})


def test_an_unexpected_error_of_a_worker_is_logged_with_its_traceback(caplog, monkeypatch):
    monkeypatch.setattr("ray.train.get_context", lambda: Mock(**{"get_world_rank.return_value": 1}))

    def fail(config):
        raise config

    for error in (KeyError("a bug"), ValueError("of the user")):
        with pytest.raises(type(error)):
            _work({"worker": fail, "config": error, "watch": None})
    assert "Traceback" in caplog.text
    assert "KeyError: 'a bug'" in caplog.text
    assert "of the user" not in caplog.text


def test_a_number_of_workers_may_be_a_range():
    assert (ClusterConfig(num_workers=3).min_workers, ClusterConfig().max_workers) == (3, 2)
    elastic = ClusterConfig(num_workers=[1, 4])  # pyright: ignore[reportArgumentType]
    assert (elastic.min_workers, elastic.max_workers) == (1, 4)
    for wrong in (0, (0, 2), (3, 2), (1, 2, 3), ()):
        with pytest.raises(ValueError, match=r"cluster.num_workers must be 1 or more, or \[least"):
            ClusterConfig(num_workers=wrong)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def logging_as_it_was():
    loggers = [logging.getLogger(name) for name in ("", *PACKAGES, "mlflow")]
    levels = [logger.level for logger in loggers]
    handlers = loggers[0].handlers[:]
    yield
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def test_of_several_workers_all_but_one_speak_of_errors_alone(logging_as_it_was, capsys):
    speaker = logging.getLogger("cluster.storage.download")
    for only_errors in (True, False):
        configure_logging(only_errors=only_errors)
        speaker.info("loading %s", only_errors)
        speaker.error("failed %s", only_errors)
    told = capsys.readouterr().err
    assert "failed True" in told
    assert "loading True" not in told
    assert "loading False" in told


def test_what_would_fail_again_is_told_from_what_the_cluster_did():
    decide = FailurePolicy(ClusterConfig(max_consecutive_failures=0), "runs")
    for failure, kind in (
        (ValueError("wrong"), UntrainableError),
        (torch.OutOfMemoryError("CUDA out of memory"), UntrainableError),
        (refused_memory(), UntrainableError),
        (LOST, UntrainableError),
        (OSError("no route to S3"), RunError),
        (OSError(28, "No space left on device"), RunError),
    ):
        with pytest.raises(RunError) as ending:
            decide.after_exception(None, {0: failure})
        assert ending.type is kind


def test_a_watch_knows_each_run_and_that_any_lives():
    watch = HeartbeatActor()
    assert watch.look("a")[2] == 0
    watch.beat("b", 2)
    anybody, own, _ = watch.look("a")
    assert anybody < 1
    assert own == math.inf
    assert watch.look("b")[2] == 2
