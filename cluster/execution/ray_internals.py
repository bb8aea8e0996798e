"""Private APIs of Ray 2.60, one function or class per use.

`cluster/execution/heartbeat.py` and `cluster/config.py` use two more, a method of Ray Train's
controller and an environment variable; the first must not import Ray Train, the second no Ray.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train
from pyarrow.fs import FileSystem
from ray import cloudpickle
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.job_submission import JobSubmissionClient
from ray.train import UserCallback
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.callbacks.user_callback import UserCallbackHandler
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution import callback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

ControllerCallback = callback.ControllerCallback
"""Callback at the start of Ray Train's controller and before it starts workers.

The public `UserCallback` has neither.
"""


def set_callbacks(
    trainer: DataParallelTrainer,
    *,
    user: Sequence[UserCallback],
    controller: Sequence[ControllerCallback],
) -> None:
    """Add callbacks to a trainer's controller, and remove two of Ray's defaults.

    The public `RunConfig.callbacks` would also reach the workers, which would import all
    dependencies of the callbacks.

    Ray's callback for Ray Data sets starts a process, and this project uses no such data sets. The
    cleaner of placement groups polls the dashboard every second and logs errors without one; Ray
    releases the placement group of a controller together with the controller anyway.
    """
    create_defaults = trainer._create_default_callbacks

    def create_callbacks() -> list[RayTrainCallback]:
        return [
            *(
                default
                for default in create_defaults()
                if not isinstance(default, PlacementGroupCleanerCallback | DatasetsCallback)
            ),
            UserCallbackHandler(list(user), trainer.train_run_context),
            *controller,
        ]

    trainer._create_default_callbacks = create_callbacks


def health_check_cause(failure: Exception) -> Exception:
    """Unwrap the error behind a failed health check of Ray Train.

    The class is private, but Ray passes its instances to `UserCallback.after_exception`.
    """
    if isinstance(failure, WorkerHealthCheckFailedError):
        return failure.health_check_failure
    return failure


def checkpoint_filesystem() -> FileSystem:
    """Return the file system of this worker's checkpoints.

    The public context of a worker has no such method, and annotates `get_storage` as None.
    """
    storage: Any = ray.train.get_context().get_storage()
    return storage.storage_filesystem


def checkpoint_path(name: str) -> str:
    """Return the path that Ray chooses for a checkpoint of this run.

    Needed by a `checkpoint_upload_fn`, to which Ray passes only the name.
    """
    storage: Any = ray.train.get_context().get_storage()
    return storage.build_checkpoint_path_from_name(name)


def trial_error(trial: Any) -> Exception:
    """Load a trial's exception from the local file of Ray Tune.

    Tune's callback `on_trial_error` receives the trial without its exception.
    """
    if trial.pickled_error_file is None:
        return RuntimeError(f"Tune lost trial {trial.trial_id}")
    return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())


def keep_credentials_out_of_trials() -> None:
    """Keep AWS credentials out of the runtime environments of trials.

    Tune copies them from this process for trials on other nodes, and Ray writes runtime
    environments into its logs. Trials on the driver's node inherit the environment of that node.
    """
    from ray.tune.execution import class_cache  # Ray Tune costs a worker 0.2 s that it can save

    class_cache.ENV_VARS_TO_PROPAGATE -= {
        name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")
    }


def pack_code(folder: Path, package: Path) -> None:
    """Pack a folder as a job submission does.

    Ray's public client packs and uploads in one step. Files that .gitignore and .rayignore exclude
    are not packed.
    """
    create_package(str(folder), package, include_gitignore=True)


def request_headers(client: JobSubmissionClient) -> dict[str, str]:
    """Return the headers with which a job client authenticates its requests.

    The public method for a job's status has no timeout, and no status code in its error.
    """
    return client._headers


def validate_cluster_file(content: dict[str, Any]) -> None:
    """Validate the content of a cluster file as `ray up` does.

    Ray has no public function or command that only validates.

    Raises:
        jsonschema.ValidationError, ValueError, RuntimeError: Ray rejects the content.
    """
    validate_config(prepare_config(content))
