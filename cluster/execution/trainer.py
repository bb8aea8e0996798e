"""Starts a worker function on Ray: the cluster at hand, or a local one of its own."""

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
"""How long Ray tries for as many workers as it thought there was room for, before it counts again:
after the loss of a node it counts that node for up to 20 seconds."""


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
        run_worker,
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
        result = run_supervised(trainer.fit, watch, name, cluster)
    except TrainingFailedError as error:
        cause = error.controller_failure if isinstance(error, ControllerError) else error
        kind = type(cause) if isinstance(cause, RunError) else RunError
        raise kind(describe_failure(cause, storage)) from error
    except RayError as error:
        raise RunError(
            f"Ray's controller of the run was lost ({type(error).__name__}); start the run again "
            "to go on from its last checkpoint"
        ) from error
    assert result.checkpoint is not None, "a worker must report a checkpoint"
    return result.checkpoint


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
            ControllerRegistration(self.watch, self.run_name),
        ]
