"""Starts a worker function on Ray: the cluster at hand, or a local one of its own."""

import fcntl
import logging
import os
import signal
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    LoggingConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2.api.callback import RayTrainCallback
from torch.distributed import DistError

from cluster.config import ClusterConfig, in_submitted_job
from ranet.training.optim import NonFiniteLoss

logger = logging.getLogger(__name__)


class RunError(RuntimeError):
    """A run that failed; its message is the cause, in one sentence."""


def resolve_storage(storage: str) -> str:
    """Return `storage` as an absolute path that can be written, or as it is where it is an address.

    Raises:
        ValueError: it is relative inside a submitted job, or cannot be written.
    """
    if "://" in storage:
        return storage
    path = Path(storage)
    if not path.is_absolute() and in_submitted_job():
        raise ValueError(
            f"cluster.storage is {storage}: a submitted job runs in a folder that is thrown away; "
            "give a full path or an s3:// address that every node sees"
        )
    path = path.absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(bytes(1 << 20))
    except OSError as error:
        raise ValueError(
            f"cluster.storage is {storage}: cannot write to {path} ({error.strerror}); "
            "free space there or give another folder"
        ) from error
    return str(path)


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one for this context.

    Where Ray is connected already, as inside a Tune trial, nothing is done.

    Raises:
        RunError: nobody answers at that address.
    """
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address := os.environ.get("RAY_ADDRESS"):
        _check_answers(address)
        ray.init(logging_level=logging.ERROR)
    else:
        needed = cluster.num_workers * cluster.cpus_per_worker
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this node
        ray.init(
            address="local",
            num_cpus=max(needed, os.cpu_count() or 1),
            # Ray would claim a third of the memory; only settings pass through the object store.
            object_store_memory=100 << 20,
            include_dashboard=False,
            logging_level=logging.ERROR,
        )
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray put its own handler there
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse a HOST:PORT at which nobody listens: Ray would go on trying for many minutes."""
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdigit():  # such as auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"RAY_ADDRESS is {address}: no cluster answers there ({error}); start it, correct the "
            "address, or unset RAY_ADDRESS to train on this machine alone"
        ) from error


def launch(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    name: str,
    storage: str,
    cluster: ClusterConfig,
    callbacks: Sequence[UserCallback] = (),
) -> Checkpoint:
    """Run `worker(config)` on every worker and return the last checkpoint.

    Workers find the last checkpoint of an unfinished `name` by `ray.train.get_checkpoint()`.

    Args:
        worker: an importable function; Ray sends its name, not its code.
        config: its argument, the same on every worker.
        name: folder below `storage`; used again only to go on with a run.
        storage: absolute path or address.
        cluster: what to ask of Ray.
        callbacks: called in Ray's controller process after every report.

    Raises:
        RunError: a worker failed, or its resources never came; the message is the cause.
    """
    # Read by Ray Train in this process and handed to its controller.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(cluster.start_timeout_seconds)
    # Every report waits for the controller's next look, by default every two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    use_gpu = wants_gpu(cluster)
    trainer = _Trainer(
        worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            checkpoint_config=CheckpointConfig(num_to_keep=cluster.keep_checkpoints),
            # Controller failures are resources that did not come in start_timeout_seconds.
            failure_config=FailureConfig(
                max_failures=cluster.max_failures, controller_failure_limit=0
            ),
            callbacks=list(callbacks),
            worker_runtime_env={"env_vars": worker_environment(cluster)},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result = _interruptible(trainer.fit)
    except TrainingFailedError as error:
        raise RunError(_cause(error, cluster)) from error
    assert result.checkpoint is not None, "a worker must report a checkpoint"
    return result.checkpoint


def wants_gpu(cluster: ClusterConfig) -> bool:
    """Decide `cluster.device` auto by the GPUs that Ray has."""
    if cluster.device == "auto":
        return ray.cluster_resources().get("GPU", 0) >= cluster.num_workers
    return cluster.device == "gpu"


def worker_environment(cluster: ClusterConfig) -> dict[str, str]:
    """Return the environment that a worker needs before it imports torch."""
    # As many threads on every start: the order of a sum, and so its last bits, depend on it.
    environment = {"OMP_NUM_THREADS": str(cluster.cpus_per_worker)}
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        # Gloo binds to the address of the hostname, which often is 127.0.0.1: not where the
        # other workers are told to look.
        address = ray.util.get_node_ip_address()
        environment["GLOO_SOCKET_IFNAME"] = interface_of(address)
    return environment


def interface_of(address: str) -> str:
    """Return the network interface that has this IPv4 address, `lo` where none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            try:
                answer = fcntl.ioctl(probe, 0x8915, request)  # SIOCGIFADDR
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return "lo"


class _Trainer(TorchTrainer):
    """A TorchTrainer without Ray's cleaner of placement groups.

    The cleaner asks the dashboard every second, and complains where there is none; the placement
    group of a controller goes with it anyway.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, PlacementGroupCleanerCallback)
        ]


def _interruptible(fit: Callable[[], Result]) -> Result:
    """Run `fit` in a thread, so that Ctrl-C reaches us as KeyboardInterrupt.

    In the main thread Ray Train would handle Ctrl-C itself, and leave with status 0. The
    workers end when the connection to Ray is closed.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(fit())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, name="ray-train", daemon=True).start()
    return outcome.result()


def _cause(error: TrainingFailedError, cluster: ClusterConfig) -> str:
    """Return the cause of a failure as one sentence; log where in our code it arose."""
    if isinstance(error, WorkerGroupError):
        rank, cause = min(
            error.worker_failures.items(), key=lambda item: (_remoteness(item[1]), item[0])
        )
        if _remoteness(cause) == 1:
            return (
                f"worker {rank} was lost: it was killed, ran out of memory, or its node went; "
                "start the run again to go on from its last checkpoint"
            )
        if not isinstance(cause, ValueError | OSError | NonFiniteLoss):
            logger.error("%s", error)
        return f"worker {rank} failed: {cause}"
    if isinstance(error, ControllerError):
        cause = error.controller_failure
        if isinstance(cause, WorkerGroupStartupTimeoutError):
            gpu = " and 1 GPU" if wants_gpu(cluster) else ""
            has = ray.cluster_resources()
            return (
                f"{cluster.num_workers} workers with {cluster.cpus_per_worker} CPUs{gpu} each did "
                "not get their resources within cluster.start_timeout_seconds = "
                f"{cluster.start_timeout_seconds:g}: the cluster has {has.get('CPU', 0):g} CPUs "
                f"and {has.get('GPU', 0):g} GPUs; ask for less or add nodes"
            )
        return f"{type(cause).__name__}: {cause}"
    return str(error)


def _remoteness(failure: Exception) -> int:
    """Order the failures of several workers: an error, then a death, then losing one's peers."""
    if isinstance(failure, WorkerHealthCheckFailedError | RayError):
        return 1
    return 2 if type(failure) is RuntimeError or isinstance(failure, DistError) else 0
