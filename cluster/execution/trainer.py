"""Run a worker function with Ray Train."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.callbacks.user_callback import UserCallbackHandler
from ray.train.v2.api.callback import RayTrainCallback

from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.execution.environment import worker_environment
from cluster.execution.failures import FailurePolicy, describe_failure
from cluster.execution.heartbeat import start_heartbeats
from cluster.execution.resources import wants_gpu, worker_resources
from cluster.execution.supervision import ControllerRegistration, run_supervised
from cluster.execution.worker import run_worker
from cluster.storage.filesystem import open_storage

ELASTIC_START_SECONDS = 5.0
"""Time limit for the start of an elastic run's workers, after which Ray counts its resources again.
Ray counts a lost node for up to 20 seconds, and would wait for workers on that node."""


def launch(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    name: str,
    storage: str,
    cluster: ClusterConfig,
    callbacks: Sequence[UserCallback] = (),
    heartbeats: Any = None,
) -> Checkpoint:
    """Run `worker(config)` on every worker and return the last checkpoint.

    In a resumed run, `ray.train.get_checkpoint()` returns the last checkpoint to the workers.

    Args:
        worker: an importable function; Ray sends its name instead of its code.
        config: argument of the worker function, the same on every worker.
        name: name of the run's folder in `storage`; the name of an existing run resumes that run.
        storage: path or URI, as returned by `resolve_storage`.
        cluster: number, resources and device of the workers.
        callbacks: callbacks that run in Ray Train's controller process.
        heartbeats: handle from `start_heartbeats`, shared by runs that compete for resources; None
            starts an actor for this run.

    Raises:
        RunError: the run failed, or its resources did not become available; the message contains
            the cause.
    """
    elastic = cluster.min_workers < cluster.max_workers
    # Time limits of Ray Train, which reads these variables here and passes them to its controller.
    # A fixed number of workers needs no early retry: the supervision limits the waiting.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(
        ELASTIC_START_SECONDS if elastic else cluster.start_timeout_seconds
    )
    # Each report waits for the controller's next poll; the default interval is two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Resolve what the workers share: the device, the storage and the heartbeat actor.
    use_gpu = wants_gpu(cluster)
    storage = storage if "://" in storage else str(Path(storage).absolute())
    path, filesystem = open_storage(storage)
    heartbeats = heartbeats or start_heartbeats()
    # Describe the run to Ray Train: resources, storage and environment of the workers.
    trainer = _Trainer(
        run_worker,
        train_loop_config={
            "worker": worker,
            "config": config,
            "heartbeats": heartbeats,
            "name": name,
        },
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
            # No limits of Ray: FailurePolicy and the supervision decide when a run ends.
            failure_config=FailureConfig(max_failures=-1, controller_failure_limit=-1),
            worker_runtime_env={"env_vars": worker_environment(cluster)},
            logging_config=LoggingConfig(log_level="CRITICAL"),  # FailurePolicy logs failures
        ),
    )
    # Callbacks run in the controller process only; the failure policy is the last one, because the
    # exception that ends a run must not keep other callbacks from flushing metrics.
    trainer.heartbeats, trainer.run_name = heartbeats, name
    trainer.user_callbacks = [*callbacks, FailurePolicy(cluster, storage)]
    # Train, and turn each kind of failure into one sentence for the user.
    try:
        result = run_supervised(trainer.fit, heartbeats, name, cluster)
    except TrainingFailedError as error:
        cause = error.controller_failure if isinstance(error, ControllerError) else error
        kind = type(cause) if isinstance(cause, RunError) else RunError
        raise kind(describe_failure(cause, storage)) from error
    except RayError as error:
        raise RunError(
            f"the Ray Train controller of the run was lost ({type(error).__name__}); start the run "
            "again to resume from its last checkpoint"
        ) from error
    assert result.checkpoint is not None, "a worker must report a checkpoint"
    return result.checkpoint


class _Trainer(TorchTrainer):
    """TorchTrainer with our controller callbacks, and without two of Ray's default callbacks.

    The callback for Ray Data sets starts a process, and this project uses no such data sets. The
    cleaner of placement groups polls the dashboard every second and logs errors without one;
    Ray releases the placement group of a controller together with the controller anyway.
    `RunConfig.callbacks` would also reach the workers, which would import all dependencies of the
    callbacks; so the trainer passes its callbacks to the controller directly.
    """

    heartbeats: Any
    run_name: str
    user_callbacks: list[UserCallback]

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, PlacementGroupCleanerCallback | DatasetsCallback)
        ] + [
            UserCallbackHandler(self.user_callbacks, self.train_run_context),
            ControllerRegistration(self.heartbeats, self.run_name),
        ]
