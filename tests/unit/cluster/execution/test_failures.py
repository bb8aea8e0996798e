"""Failure policy of a run."""

import pytest
import torch
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from torch.distributed import DistBackendError

from cluster.config import ClusterConfig
from cluster.errors import RunError, TimeLimitError, UntrainableError
from cluster.execution.failures import FailurePolicy, memory_advice
from ranet.training.optim import NonFiniteLoss

LOST = WorkerHealthCheckFailedError("it does not answer", RayActorError())
DISCONNECTED = RuntimeError("connection closed by peer")
FULL_DISK = OSError(28, "No space left on device")


def message_of(failures, **settings):
    """Return the error message of a run after these failures."""
    policy = FailurePolicy(ClusterConfig(storage_path="s3://bucket/runs", **settings))
    with pytest.raises(RunError) as raised:
        policy.after_exception(None, failures)
    return str(raised.value)


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ({0: DISCONNECTED, 1: ValueError("bad image 7")}, "worker 1 failed: bad image 7"),
        ({0: LOST, 1: NonFiniteLoss("the loss is nan")}, "worker 1 failed: the loss is nan"),
        ({0: DISCONNECTED, 1: KeyError("a bug")}, "worker 1 failed: KeyError: 'a bug'"),
        ({0: DISCONNECTED, 1: LOST}, "worker 1 was lost: it was killed"),
        (
            {1: DISCONNECTED, 0: DISCONNECTED},
            "worker 0 lost the connection to another worker (connection closed",
        ),
    ],
)
def test_message_describes_the_root_cause_of_several_failures(failures, message):
    assert message_of(failures, max_consecutive_failures=0).startswith(message)


@pytest.mark.parametrize("cause", [ValueError("bad"), NonFiniteLoss("the loss is nan"), FULL_DISK])
def test_recurring_error_ends_the_run_at_once(cause):
    assert message_of({0: cause}, max_consecutive_failures=3).startswith("worker 0 failed: ")


def failed_allocation() -> RuntimeError:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 56)
    return raised.value


def test_failed_cpu_allocation_is_described_with_a_remedy():
    message = message_of({0: failed_allocation()}, max_consecutive_failures=3)
    assert message.startswith("worker 0 failed: not enough memory: [enforce fail")
    assert "you tried to allocate" in message
    assert message.endswith("use a smaller model or train.batch_size")


def test_message_of_a_full_disk_names_the_setting():
    assert "free space in cluster.storage_path, s3://bucket/runs, or in" in message_of(
        {0: FULL_DISK}
    )


def test_run_with_progress_survives_repeated_node_losses(caplog):
    policy = FailurePolicy(ClusterConfig(max_consecutive_failures=2))
    for _ in range(5):
        policy.after_exception(None, {0: LOST})
        policy.after_exception(None, {0: DISCONNECTED})
        policy.after_report(None, [{}], None)
    assert "consecutive failure 2" in caplog.text
    policy.after_exception(None, {0: LOST})
    policy.after_exception(None, {0: LOST})
    with pytest.raises(
        RunError, match=r"was lost: .* consecutive failure 3 .*max_consecutive_failures is 2"
    ):
        policy.after_exception(None, {0: LOST})


def test_preempted_node_does_not_count_as_a_failure():
    policy = FailurePolicy(ClusterConfig(max_consecutive_failures=0))
    preempted = RayActorError(error_msg="a node was preempted", preempted=True)
    for failure in (preempted, WorkerHealthCheckFailedError("it does not answer", preempted)):
        policy.after_exception(None, {0: DISCONNECTED, 1: failure})


def test_time_limit_ends_the_run_with_the_message_of_the_workers():
    stopped = TimeLimitError("cluster.max_hours is over: stopped after 1 epochs and 3 steps")
    assert message_of({0: DISCONNECTED, 1: stopped}) == str(stopped)


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        DistBackendError("NCCL error: Cuda failure 2 'out of memory'"),
    ],
)
def test_failed_allocation_of_a_cuda_library_ends_the_run_at_once(failure):
    message = message_of({0: failure}, max_consecutive_failures=3)
    assert message.startswith("worker 0 failed: not enough memory: ")


def test_recurring_errors_are_distinguished_from_failures_of_the_cluster():
    policy = FailurePolicy(ClusterConfig(max_consecutive_failures=0))
    for failure, kind in (
        (ValueError("wrong"), UntrainableError),
        (torch.OutOfMemoryError("CUDA out of memory"), UntrainableError),
        (failed_allocation(), UntrainableError),
        (LOST, UntrainableError),
        (OSError("no route to S3"), RunError),
        (OSError(28, "No space left on device"), RunError),
    ):
        with pytest.raises(RunError) as raised:
            policy.after_exception(None, {0: failure})
        assert raised.type is kind


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_lack_of_memory_names_the_work_and_its_remedy_and_ends_the_run(error):
    with (
        pytest.raises(MemoryError) as raised,
        memory_advice("training", "set train.micro_batch_size below 128"),
        memory_advice("evaluating", "no other advice"),
    ):
        raise error
    expected = f"not enough memory while evaluating: {error}; no other advice"
    assert message_of({0: raised.value}) == f"worker 0 failed: {expected}"


def test_other_errors_pass_unchanged():
    with pytest.raises(RuntimeError, match=r"^connection closed"), memory_advice("a", "b"):
        raise DISCONNECTED
