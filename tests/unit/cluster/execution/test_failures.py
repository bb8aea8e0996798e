"""Failure policy of a run."""

import pytest
import torch
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from cluster.config import ClusterConfig
from cluster.errors import RunError, UntrainableError
from cluster.execution.failures import FailurePolicy
from ranet.training.optim import NonFiniteLoss

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
