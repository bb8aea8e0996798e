"""Private APIs of MLflow 3.17, one function or class per use."""

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.credentials import get_default_host_creds, read_mlflow_creds
from mlflow.utils.rest_utils import http_request

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


class SystemMetrics:
    """CPU, memory, disk and network metrics of this machine, under MLflow's names.

    MLflow's own thread (`log_system_metrics=True`) ends at the first outage of the server.
    """

    def __init__(self, run_id: str, uri: str) -> None:
        self._monitor = SystemMetricsMonitor(run_id, tracking_uri=uri)

    def collect(self) -> dict[str, float]:
        """Measure the machine once."""
        self._monitor.collect_metrics()
        values = self._monitor.aggregate_metrics()
        for monitor in self._monitor.monitors:
            monitor.clear_metrics()
        return values
