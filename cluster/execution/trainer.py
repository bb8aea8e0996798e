"""Starts a worker function on Ray: the cluster at hand, or a local one of its own."""

import errno
import fcntl
import logging
import os
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray
import ray.train
import torch
from ray.autoscaler.sdk import request_resources
from ray.exceptions import GetTimeoutError, RayActorError, RayError
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
)
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.callbacks.user_callback import UserCallbackHandler
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2.api.callback import RayTrainCallback
from torch.distributed import DistError

from cluster.config import ClusterConfig
from cluster.errors import RunError, UntrainableError
from cluster.execution.heartbeat import ABORT_SECONDS, abort, start_heartbeats
from cluster.monitoring.prometheus import active
from cluster.storage.filesystem import open_storage
from ranet.training.optim import NonFiniteLoss

logger = logging.getLogger(__name__)

BEAT_SECONDS = 2.0
"""Time between two signs of life of the workers."""
LOG_SECONDS = 30.0
"""Time between two words on workers that are waited for."""
ELASTIC_START_SECONDS = 5.0
"""How long Ray tries for as many workers as it thought there was room for, before it counts again:
after the loss of a node it counts that node for up to 20 seconds."""


@contextmanager
def connected(cluster: ClusterConfig, *, crowded: bool = True) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one for this context.

    Where Ray is connected already, as inside a Tune trial, nothing is done.

    Args:
        cluster: what a run asks for.
        crowded: a local cluster is told of `local_cpus`; otherwise of this machine's alone.

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
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this node
        ray.init(
            address="local",
            num_cpus=local_cpus(cluster) if crowded else os.cpu_count(),
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


def local_cpus(cluster: ClusterConfig) -> int:
    """Return the CPUs that a local cluster is told of.

    They are as many as the workers ask for, who share this machine's where it has fewer.
    """
    return max(cluster.max_workers * cluster.cpus_per_worker, os.cpu_count() or 1)


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
    watch: Any = None,
) -> Checkpoint:
    """Run `worker(config)` on every worker and return the last checkpoint.

    Workers find the last checkpoint of an unfinished `name` by `ray.train.get_checkpoint()`.

    Args:
        worker: an importable function; Ray sends its name, not its code.
        config: its argument, the same on every worker.
        name: folder below `storage`; used again only to go on with a run.
        storage: path or address, which `resolve_storage` has been asked about.
        cluster: what to ask of Ray.
        callbacks: called in Ray's controller process after every report.
        watch: what `start_heartbeats` gave, shared by runs that wait for one another's resources.

    Raises:
        RunError: a worker failed, or its resources never came; the message is the cause.
    """
    elastic = cluster.min_workers < cluster.max_workers
    # Read by Ray Train in this process and handed to its controller.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(
        ELASTIC_START_SECONDS if elastic else cluster.start_timeout_seconds
    )
    # Every report waits for the controller's next look, by default every two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    use_gpu = wants_gpu(cluster)
    storage = storage if "://" in storage else str(Path(storage).absolute())
    path, filesystem = open_storage(storage)
    watch = watch or start_heartbeats()
    trainer = _Trainer(
        _work,
        train_loop_config={"worker": worker, "config": config, "watch": watch, "name": name},
        scaling_config=ScalingConfig(
            num_workers=(
                (cluster.min_workers, cluster.max_workers) if elastic else cluster.max_workers
            ),
            use_gpu=use_gpu,
            resources_per_worker=worker_resources(cluster),
            elastic_resize_monitor_interval_s=cluster.elastic_check_seconds,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=cluster.keep_checkpoints),
            # Whether to go on is decided by FailurePolicy, and by how long there are no workers.
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=-1),
            worker_runtime_env={"env_vars": worker_environment(cluster)},
            logging_config=LoggingConfig(log_level="CRITICAL"),  # failures are told by us, once
        ),
    )
    trainer.watch, trainer.run_name = watch, name
    trainer.user_callbacks = [*callbacks, FailurePolicy(cluster, storage)]
    try:
        result = _finish(trainer.fit, watch, name, cluster)
    except TrainingFailedError as error:
        cause = error.controller_failure if isinstance(error, ControllerError) else error
        kind = type(cause) if isinstance(cause, RunError) else RunError
        raise kind(_with_way_out(cause, storage)) from error
    except RayError as error:
        raise RunError(
            f"Ray's controller of the run was lost ({type(error).__name__}); start the run again "
            "to go on from its last checkpoint"
        ) from error
    assert result.checkpoint is not None, "a worker must report a checkpoint"
    return result.checkpoint


def wants_gpu(cluster: ClusterConfig) -> bool:
    """Decide `cluster.device` auto by the GPUs that Ray has."""
    if cluster.device == "auto":
        needed = cluster.min_workers * cluster.gpus_per_worker
        return ray.cluster_resources().get("GPU", 0) >= needed
    return cluster.device == "gpu"


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Return what a worker asks of Ray."""
    gpu = {"GPU": cluster.gpus_per_worker} if wants_gpu(cluster) else {}
    return {"CPU": float(cluster.cpus_per_worker), **gpu}


def capacity_for(cluster: ClusterConfig) -> int:
    """Return how many runs' workers Ray has room for now, all nodes together; 0: not for one."""
    needs = worker_resources(cluster)
    workers = sum(
        int(min((node["Resources"].get(name, 0) + 1e-6) // each for name, each in needs.items()))
        for node in ray.nodes()
        if node["Alive"]
    )
    return max(workers // cluster.max_workers, int(workers >= cluster.min_workers))


def check_capacity(cluster: ClusterConfig) -> None:
    """Refuse a run that the cluster has no room for; one that may grow is asked to, and waited for.

    Raises:
        RunError: the workers of a single run do not fit within `cluster.start_timeout_seconds`, or,
            on a cluster of this process's own, at all.
    """
    deadline = time.monotonic() + cluster.start_timeout_seconds
    may_grow = "RAY_ADDRESS" in os.environ
    if capacity_for(cluster):
        return
    if may_grow:
        logger.warning("no room for the workers of a run yet, waiting for nodes")
        request_resources(bundles=[worker_resources(cluster)] * cluster.min_workers)
    while may_grow and not capacity_for(cluster) and time.monotonic() < deadline:
        time.sleep(1.0)
    if may_grow:
        request_resources(bundles=[])
    if not capacity_for(cluster):
        raise RunError(_no_room(cluster))


def worker_environment(cluster: ClusterConfig) -> dict[str, str]:
    """Return the environment that a worker needs before it imports torch."""
    # As many threads on every start: the order of a sum, and so its last bits, depend on it.
    environment = {"OMP_NUM_THREADS": str(cluster.cpus_per_worker)}
    # torch asks for huge pages: on a CPU a step of CIFAR's network is 6 to 15 % faster.
    environment["THP_MEM_ALLOC_ENABLE"] = "1"
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
    """A TorchTrainer without Ray's data sets and cleaner, and whose controller is known.

    For data sets Ray starts one more process, though we have none of its. The cleaner of placement
    groups asks the dashboard every second, and complains where there is none; the placement group
    of a controller goes with it anyway. Callbacks are not in the run's configuration, since that
    reaches the workers, which would import all that the callbacks need.
    """

    watch: Any
    run_name: str
    user_callbacks: list[UserCallback]

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, PlacementGroupCleanerCallback | DatasetsCallback)
        ] + [
            UserCallbackHandler(self.user_callbacks, self.train_run_context),
            _Introduction(self.watch, self.run_name),
        ]


class _Introduction(ControllerCallback):
    """Tells the watch which actor the controller is, and starts no workers where it is gone.

    It goes with its driver. Ray then takes back the driver's places, workers first; a controller
    that lives a moment longer takes that for lost workers, and what it asks Ray for after its
    driver's end nobody would ever give back.
    """

    def __init__(self, watch: Any, name: str) -> None:
        self._watch, self._name = watch, name

    def after_controller_start(self, train_run_context: Any) -> None:
        self._watch.meet.remote(self._name, ray.get_runtime_context().current_actor)

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Look for the driver.

        Raises:
            RunError: it is gone.
        """
        with suppress(GetTimeoutError):
            try:
                ray.get(self._watch.look.remote(self._name), timeout=ABORT_SECONDS)
            except RayActorError as error:
                raise RunError("the driver of the run is gone") from error


def _work(task: dict[str, Any]) -> None:
    """Do what a worker has to do; the first of them gives signs of life."""
    context = ray.train.get_context()
    num_workers = context.get_world_size()
    done = Event()

    def beat() -> None:
        while not done.is_set():
            task["watch"].beat.remote(task["name"], num_workers)
            done.wait(BEAT_SECONDS)

    if context.get_world_rank() == 0:
        Thread(target=beat, name="beat", daemon=True).start()
    try:
        task["worker"](task["config"])
    except Exception as error:
        expected = isinstance(error, ValueError | OSError | NonFiniteLoss)
        if _remoteness(error) == 0 and not expected and not _is_out_of_memory(error):
            logger.exception("worker %d failed", context.get_world_rank())
        raise
    finally:
        done.set()


class FailurePolicy(UserCallback):
    """Ends a run that cannot be helped, or fails again and again; in Ray's controller process."""

    def __init__(self, cluster: ClusterConfig, storage: str) -> None:
        self._limit = cluster.max_consecutive_failures
        self._storage = storage
        self._in_a_row = 0

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Forget the failures before this report."""
        self._in_a_row = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Decide whether the workers are started again.

        Raises:
            RunError: they are not.
        """
        if any(
            getattr(_at_bottom(each), "preempted", False) for each in worker_exceptions.values()
        ):
            return  # a node was taken with notice: no failure, and Ray may tell of it repeatedly
        rank, cause = _first_cause(worker_exceptions)
        sentence = {
            0: f"worker {rank} failed: {_with_way_out(cause, self._storage)}",
            1: f"worker {rank} was lost: it was killed, ran out of memory, or its node went",
            2: f"worker {rank} lost the connection to another one ({_first_line(cause)})",
        }[_remoteness(cause)]
        if isinstance(cause, ValueError | NonFiniteLoss) or _is_out_of_memory(cause):
            raise UntrainableError(sentence)
        if _is_full_disk(cause):
            raise RunError(sentence)
        self._in_a_row += 1
        if self._in_a_row > self._limit:
            # Workers that die again and again without a word have too little memory.
            raise (UntrainableError if _remoteness(cause) == 1 else RunError)(
                f"{sentence}; that is failure {self._in_a_row} in a row without a report between, "
                f"and cluster.max_consecutive_failures is {self._limit}; start the run again to go on from its "
                "last checkpoint"
            )
        logger.warning(
            "%s; going on from the last checkpoint (failure %d in a row, cluster.max_consecutive_failures %d)",
            sentence, self._in_a_row, self._limit,
        )  # fmt: skip


def _finish(fit: Callable[[], Result], watch: Any, name: str, cluster: ClusterConfig) -> Result:
    """Run `fit` in a thread to its end, as long as there are workers, of whichever run of a watch.

    In the main thread Ray Train would handle Ctrl-C itself, and leave with status 0; so it reaches
    us as KeyboardInterrupt. The workers end when the connection to Ray is closed.

    Raises:
        RunError: there were no workers for too long.
    """
    outcome: futures.Future[Result] = futures.Future()

    def run() -> None:
        try:
            outcome.set_result(fit())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=run, name="ray-train", daemon=True).start()
    try:
        _look_after(outcome, watch, name, cluster, active(name))
    except BaseException:
        abort(watch, name)
        raise
    watch.forget.remote(name)
    return outcome.result()


def _look_after(
    outcome: futures.Future[Result],
    watch: Any,
    name: str,
    cluster: ClusterConfig,
    still_active: Callable[[], None],
) -> None:
    """Wait for the end of a run as long as there are workers, and tell how many there are."""
    known, started = 0, time.monotonic()
    told = started
    while not futures.wait([outcome], timeout=1.0).done:
        still_active()
        silent, own_silent, num_workers = ray.get(watch.look.remote(name))
        silent = min(silent, time.monotonic() - started)
        if own_silent < 2 * BEAT_SECONDS and num_workers != known:
            logger.info("training on %d worker%s", num_workers, "s" * (num_workers > 1))
            known = num_workers
        if silent > cluster.start_timeout_seconds:
            raise RunError(_no_workers(cluster))
        if silent > LOG_SECONDS and time.monotonic() > told + LOG_SECONDS:
            logger.warning("no workers since %.0f seconds, waiting for them", silent)
            told = time.monotonic()


def _no_workers(cluster: ClusterConfig) -> str:
    return (
        f"{_workers(cluster)} did not start within cluster.start_timeout_seconds = "
        f"{cluster.start_timeout_seconds:g}: {_whole_cluster()}; ask for less or add nodes, and "
        "start the run again"
    )


def _no_room(cluster: ClusterConfig) -> str:
    return (
        f"cluster.num_workers asks for {_workers(cluster)}, which is more than the cluster has: "
        f"{_whole_cluster()} on {sum(node['Alive'] for node in ray.nodes())} nodes; ask for less "
        "or add nodes"
    )


def _workers(cluster: ClusterConfig) -> str:
    gpu = f" and {cluster.gpus_per_worker:g} GPU" if wants_gpu(cluster) else ""
    return f"{cluster.min_workers} workers with {cluster.cpus_per_worker} CPUs{gpu} each"


def _whole_cluster() -> str:
    has = ray.cluster_resources()
    return f"the cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"


def _first_cause(failures: Mapping[int, Exception]) -> tuple[int, Exception]:
    """Return the failure that explains those of the other workers, and its rank."""
    return min(failures.items(), key=lambda item: (_remoteness(item[1]), item[0]))


def _remoteness(failure: Exception) -> int:
    """Order the failures of several workers: an error, then a death, then losing one's peers."""
    if type(failure).__module__.startswith("ray."):
        return 1
    if isinstance(failure, DistError):
        return 2
    # Gloo has no error of its own.
    text = str(failure).lower()
    return 2 * (type(failure) is RuntimeError and ("connection" in text or "gloo" in text))


def _at_bottom(failure: Exception) -> Exception:
    """Return what a failed health check of Ray Train failed of."""
    return getattr(failure, "health_check_failure", failure)


def _first_line(cause: Exception) -> str:
    return str(cause).partition("\n")[0]


def _is_full_disk(cause: Exception) -> bool:
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_out_of_memory(cause: Exception) -> bool:
    """Whether memory was refused, of a GPU or of a CPU, for which torch has no error of its own."""
    return isinstance(cause, MemoryError | torch.OutOfMemoryError) or (
        type(cause) is RuntimeError and "can't allocate memory" in str(cause)
    )


def _with_way_out(cause: Exception, storage: str) -> str:
    """Return a failure as one sentence, with what helps against full disks and full memory."""
    if _is_out_of_memory(cause):
        return (
            f"not enough memory: {_first_line(cause)}; a smaller model or train.batch_size needs "
            "less"
        )
    if _is_full_disk(cause):
        return (
            f"no space for a checkpoint: {cause}; free space in cluster.storage_path, {storage}, or in "
            f"the temporary folder of the node, {tempfile.gettempdir()}, and start the run again"
        )
    if isinstance(cause, RunError | ValueError | OSError | NonFiniteLoss):
        return str(cause)
    return f"{type(cause).__name__}: {cause}"
