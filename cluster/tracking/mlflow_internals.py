"""Private APIs of MLflow 3.17, one function or class per use."""

import logging
from pathlib import Path

from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.utils.credentials import get_default_host_creds, read_mlflow_creds
from mlflow.utils.rest_utils import http_request

logger = logging.getLogger(__name__)

PARENT_RUN_TAG = "mlflow.parentRunId"
"""Tag that makes a run the child of another; documented, but not an importable name."""
LOGGED_ARTIFACTS_TAG = "mlflow.loggedArtifacts"
"""Tag that lists the tables that MLflow shows for a run."""


def server_version(uri: str) -> str:
    """Return a server's version text, requested with the client's credentials.

    MLflow's public client has no method for the endpoint `/version`.
    """
    answer = http_request(get_default_host_creds(uri), "/version", "GET")
    return "" if answer is None else answer.text


def configured_user() -> str | None:
    """Return the user name from the environment or from `~/.mlflow/credentials`."""
    return read_mlflow_creds().username


def create_database(uri: str, artifact_root: Path) -> None:
    """Create the tables and the default experiment of a SQLite database.

    MLflow itself creates them at the first call, under the final name of the file.
    """
    SqlAlchemyStore(uri, str(artifact_root)).engine.dispose()


class SystemMetrics:
    """CPU, memory, disk, network and GPU metrics of this machine, under MLflow's names.

    MLflow's own thread (`log_system_metrics=True`) ends at the first outage of the server, and its
    monitor fails as a whole where one metric is missing.
    """

    def __init__(self) -> None:
        self._monitors = []
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            # Metrics are optional: a container may hide the network, a machine may have no GPU.
            try:
                self._monitors.append(kind())
            except Exception as error:
                logger.debug("no metrics of %s: %s", kind.__name__, error)

    def collect(self) -> dict[str, float]:
        """Measure the machine once, without what cannot be measured."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            try:
                monitor.collect_metrics()
                values |= monitor.aggregate_metrics()
            except Exception as error:
                logger.debug("no metrics of %s: %s", type(monitor).__name__, error)
            monitor.clear_metrics()
        return values
