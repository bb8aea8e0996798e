"""Private APIs of MLflow that an upgrade may remove."""

import importlib

import mlflow
import pytest
from mlflow.utils import mlflow_tags

from cluster.tracking import mlflow_internals


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("mlflow.system_metrics.system_metrics_monitor", "SystemMetricsMonitor.collect_metrics"),
        ("mlflow.system_metrics.system_metrics_monitor", "SystemMetricsMonitor.aggregate_metrics"),
        ("mlflow.utils.credentials", "get_default_host_creds"),
        ("mlflow.utils.credentials", "read_mlflow_creds"),
        ("mlflow.utils.rest_utils", "http_request"),
    ],
)
def test_private_api_of_mlflow_exists(module: str, name: str):
    problem = (
        f"MLflow {mlflow.__version__} has no {module}.{name}: "
        "replace it in cluster/tracking/mlflow_internals.py"
    )
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        pytest.fail(problem)
    for part in name.split("."):
        assert hasattr(found, part), problem
        found = getattr(found, part)


def test_tags_are_those_of_mlflow():
    assert mlflow_internals.PARENT_RUN_TAG == mlflow_tags.MLFLOW_PARENT_RUN_ID
    assert mlflow_internals.LOGGED_ARTIFACTS_TAG == mlflow_tags.MLFLOW_LOGGED_ARTIFACTS


def test_system_metrics_of_this_machine_are_measured():
    metrics = mlflow_internals.SystemMetrics("run", "sqlite://").collect()
    assert 0 < metrics["system_memory_usage_percentage"] < 100
