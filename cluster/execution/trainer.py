"""Run a worker function with Ray Train."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from ray.exceptions import RayError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchTrainer

from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.execution.failures import FailurePolicy, describe_failure
from cluster.execution.heartbeat import Heartbeats
from cluster.execution.node.environment import worker_environment
from cluster.execution.node.gpu_driver import DriverCheck
from cluster.execution.node.process_group import NodeInterfaceConfig
from cluster.execution.ray_internals import ControllerCallback, set_callbacks
from cluster.execution.resources import wants_gpu, worker_resources
from cluster.execution.supervision import ControllerRegistration, run_supervised
from cluster.execution.worker import run_worker
from cluster.storage.filesystem import open_storage

_Task = TypeVar("_Task")

ELASTIC_START_SECONDS = 5.0
"""Time limit for the start of an elastic run's workers, after which Ray counts its resources again.
Ray counts a lost node for up to 20 seconds, and would wait for workers on that node."""


def launch(
    function: Callable[[_Task], None],
    task: _Task,
    *,
    cluster: ClusterConfig,
    name: str,
    callbacks: Sequence[UserCallback] = (),
    heartbeats: Heartbeats | None = None,
) -> Checkpoint:
    """Run `function(task)` on every worker and return the last checkpoint.

    In a resumed run, `ray.train.get_checkpoint()` returns the last checkpoint to the workers.

    Args:
        function: an importable function; Ray sends its name instead of its code.
        task: argument of the function, the same on every worker.
        cluster: number, resources and device of the workers, and the storage path as returned by
            `resolve_storage`.
        name: name of the run's folder in `cluster.storage_path`; the name of an existing run
            resumes that run.
        callbacks: callbacks that run in Ray Train's controller process.
        heartbeats: heartbeats of runs that compete for resources; None starts an actor for this
            run.

    Raises:
        RunError: the run failed, or its resources did not become available; the message contains
            the cause.
    """
    _set_time_limits(cluster)
    heartbeats = heartbeats or Heartbeats.start()
    trainer = TorchTrainer(
        partial(run_worker, function, task, heartbeats, name),
        torch_config=NodeInterfaceConfig(),
        scaling_config=_scaling_config(cluster),
        run_config=_run_config(cluster, name),
    )
    # The failure policy is the last callback, because the exception that ends a run must not keep
    # other callbacks from flushing metrics.
    controller: list[ControllerCallback] = [ControllerRegistration(heartbeats, name)]
    if wants_gpu(cluster):
        controller.append(DriverCheck())
    set_callbacks(trainer, user=[*callbacks, FailurePolicy(cluster)], controller=controller)
    # Train, and turn each kind of failure into one sentence for the user.
    try:
        result = run_supervised(trainer.fit, heartbeats, name, cluster)
    except (TrainingFailedError, RayError) as error:
        raise _run_error(error, cluster) from error
    assert result.checkpoint is not None, "a worker must report a checkpoint"
    return result.checkpoint


def _is_elastic(cluster: ClusterConfig) -> bool:
    return cluster.min_workers < cluster.max_workers


def _set_time_limits(cluster: ClusterConfig) -> None:
    """Set time limits of Ray Train and its controller."""
    # A fixed number of workers needs no early retry: the supervision limits the waiting.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(
        ELASTIC_START_SECONDS if _is_elastic(cluster) else cluster.start_timeout_seconds
    )
    # Each report waits for the controller's next poll; the default interval is two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def _scaling_config(cluster: ClusterConfig) -> ScalingConfig:
    """Describe number and resources of the workers."""
    num_workers = (cluster.min_workers, cluster.max_workers)
    return ScalingConfig(
        num_workers=num_workers if _is_elastic(cluster) else cluster.max_workers,
        use_gpu=wants_gpu(cluster),
        resources_per_worker=worker_resources(cluster),
        elastic_resize_monitor_interval_s=cluster.elastic_check_seconds,
    )


def _run_config(cluster: ClusterConfig, name: str) -> RunConfig:
    """Describe storage, failures and environment of a run."""
    path, filesystem = open_storage(cluster.storage_path)
    return RunConfig(
        name=name,
        storage_path=path,
        storage_filesystem=filesystem,
        checkpoint_config=CheckpointConfig(num_to_keep=cluster.keep_checkpoints),
        # No limits of Ray: FailurePolicy and the supervision decide when a run ends.
        failure_config=FailureConfig(max_failures=-1, controller_failure_limit=-1),
        worker_runtime_env={"env_vars": worker_environment(cluster)},
        logging_config=LoggingConfig(log_level="CRITICAL"),  # FailurePolicy logs failures
    )


def _run_error(error: TrainingFailedError | RayError, cluster: ClusterConfig) -> RunError:
    """Describe the end of a run in one sentence."""
    if not isinstance(error, TrainingFailedError):
        return RunError(
            f"the Ray Train controller of the run was lost ({type(error).__name__}); start the run "
            "again to resume from its last checkpoint"
        )
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    kind = type(cause) if isinstance(cause, RunError) else RunError
    return kind(describe_failure(cause, cluster.storage_path))
