"""Private APIs of Ray that an upgrade may remove."""

import importlib
import inspect

import pytest
import ray

from cluster.execution.ray_internals import keep_credentials_out_of_trials
from tests.support.private_apis import require_attribute, require_module

INTERNALS = "cluster/execution/ray_internals.py"


@pytest.mark.parametrize(
    ("module", "name", "user"),
    [
        ("ray._private.runtime_env.packaging", "create_package", INTERNALS),
        ("ray.autoscaler._private.util", "prepare_config", INTERNALS),
        ("ray.autoscaler._private.util", "validate_config", INTERNALS),
        (
            "ray.autoscaler._private.kuberay.autoscaling_config",
            "_derive_autoscaling_config_from_ray_cr",
            "tests/unit/cluster/provisioning/test_kubernetes.py",
        ),
        ("ray.scripts.scripts", "drain_node", "cluster/provisioning/spot_notice.py"),
        (
            "ray._private.ray_constants",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S",
            "cluster/provisioning/kuberay",
        ),
        (
            "ray.autoscaler._private.aws.config",
            "bootstrap_aws",
            "tests/unit/cluster/provisioning/test_node_creation.py",
        ),
        ("ray.train.v2._internal.callbacks.datasets", "DatasetsCallback", INTERNALS),
        (
            "ray.train.v2._internal.callbacks.placement_group_callback",
            "PlacementGroupCleanerCallback",
            INTERNALS,
        ),
        ("ray.train.v2._internal.callbacks.user_callback", "UserCallbackHandler", INTERNALS),
        (
            "ray.train.v2._internal.execution.callback",
            "ControllerCallback.after_controller_start",
            "cluster/execution/supervision.py",
        ),
        (
            "ray.train.v2._internal.execution.callback",
            "ControllerCallback.before_controller_execute_resize_decision",
            "cluster/execution/node/gpu_driver.py and cluster/execution/supervision.py",
        ),
        (
            "ray.train.v2._internal.execution.controller",
            "TrainController.abort",
            "cluster/execution/heartbeat.py",
        ),
        ("ray.train.v2._internal.exceptions", "WorkerHealthCheckFailedError", INTERNALS),
        ("ray.train.v2.api.callback", "RayTrainCallback", INTERNALS),
        (
            "ray.train.v2.api.data_parallel_trainer",
            "DataParallelTrainer._create_default_callbacks",
            INTERNALS,
        ),
        ("ray.train.v2.api.context", "TrainContext.get_storage", INTERNALS),
        (
            "ray.train.v2._internal.execution.storage",
            "StorageContext.build_checkpoint_path_from_name",
            INTERNALS,
        ),
        ("ray.tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE", INTERNALS),
        ("ray.tune.experiment", "Trial.pickled_error_file", INTERNALS),
    ],
)
def test_private_api_of_ray_exists(module: str, name: str, user: str):
    problem = f"Ray {ray.__version__} has no {module}.{name}: replace it in {user}"
    require_attribute(module, name, problem)


@pytest.mark.parametrize(
    ("module", "text", "user"),
    [
        ("ray.train.v2.api.data_parallel_trainer", "self.train_run_context =", INTERNALS),
        (
            "ray.train.v2.api.data_parallel_trainer",
            "callbacks=self._create_default_callbacks()",
            INTERNALS,
        ),
        ("ray.train.v2._internal.exceptions", "self.health_check_failure =", INTERNALS),
        ("ray.train.v2._internal.execution.storage", "self.storage_filesystem", INTERNALS),
        ("ray.dashboard.modules.dashboard_sdk", "self._headers =", INTERNALS),
        (
            "ray._private.runtime_env.constants",
            "RAY_JOB_CONFIG_JSON_ENV_VAR",
            "cluster/config.py",
        ),
        (
            "ray.train.v2._internal.constants",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S",
            "cluster/execution/trainer.py",
        ),
        (
            "ray.train.v2._internal.constants",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
            "cluster/execution/trainer.py",
        ),
        (
            "ray.train.v2._internal.constants",
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
            "cluster/execution/preemption.py",
        ),
        ("ray.train.constants", "RAY_CHDIR_TO_TRIAL_DIR", "tuning/search.py"),
        ("ray.tune.tune", "TUNE_DISABLE_SIGINT_HANDLER", "tuning/search.py"),
        ("ray.tune.utils.callback", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "tuning/search.py"),
        ("ray.tune.experimental.output", "RAY_AIR_NEW_OUTPUT", "tuning/search.py"),
    ],
)
def test_attribute_or_variable_that_ray_sets_or_reads_exists(module: str, text: str, user: str):
    problem = f"Ray {ray.__version__} has no `{text}` in {module}: replace it in {user}"
    assert text in inspect.getsource(require_module(module, problem)), problem


def test_trials_inherit_variables_of_ray_but_no_credentials():
    keep_credentials_out_of_trials()
    names = importlib.import_module("ray.tune.execution.class_cache").ENV_VARS_TO_PROPAGATE
    assert not [name for name in names if name.startswith("AWS_")]
    assert "RAY_CHDIR_TO_TRIAL_DIR" in names
