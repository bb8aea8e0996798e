"""Private APIs of MLflow that an upgrade may remove."""

import mlflow
import pytest
from mlflow.utils import mlflow_tags

from cluster.tracking import mlflow_internals
from tests.support.private_apis import require_attribute


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("mlflow.store.tracking.sqlalchemy_store", "SqlAlchemyStore"),
        ("mlflow.system_metrics.metrics.cpu_monitor", "CPUMonitor.collect_metrics"),
        ("mlflow.system_metrics.metrics.disk_monitor", "DiskMonitor.aggregate_metrics"),
        ("mlflow.system_metrics.metrics.network_monitor", "NetworkMonitor.clear_metrics"),
        ("mlflow.system_metrics.metrics.gpu_monitor", "GPUMonitor.collect_metrics"),
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
    require_attribute(module, name, problem)


def test_tags_are_those_of_mlflow():
    assert mlflow_internals.PARENT_RUN_TAG == mlflow_tags.MLFLOW_PARENT_RUN_ID
    assert mlflow_internals.LOGGED_ARTIFACTS_TAG == mlflow_tags.MLFLOW_LOGGED_ARTIFACTS


def test_system_metrics_of_this_machine_are_measured():
    metrics = mlflow_internals.SystemMetrics().collect()
    assert 0 < metrics["system_memory_usage_percentage"] < 100
    assert "network_receive_megabytes" in metrics


@pytest.mark.parametrize("name", ["net_io_counters", "cpu_percent", "virtual_memory", "disk_usage"])
@pytest.mark.parametrize("result", [None, OSError("not permitted")])
@pytest.mark.parametrize("is_from_start", [True, False])
def test_missing_metric_leaves_the_others(name, result, is_from_start, monkeypatch):
    def measure(*_, **__):
        if result is None:
            return  # as in some containers
        raise result

    machine = mlflow_internals.SystemMetrics()
    complete = machine.collect()
    monkeypatch.setattr(f"psutil.{name}", measure)
    if is_from_start:
        machine = mlflow_internals.SystemMetrics()
    found = machine.collect()
    assert 0 < len(found) < len(complete)
    assert None not in found.values()
