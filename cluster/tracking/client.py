"""MLflow client: reachability and version of the server, and searches."""

import logging
import os
import re
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run

from cluster.config import in_submitted_job
from cluster.environment import proxy_remedy
from cluster.errors import TrackingError
from cluster.tracking.database import check_folder, sqlite_file
from cluster.tracking.failures import FAILURES, deleted_message, explain, masked
from cluster.tracking.mlflow_internals import server_version

EXPERIMENT = "ranet"
"""Name of the MLflow experiment that holds every run."""


def tracking_uri() -> str:
    """Return MLflow's tracking URI, with an absolute path for SQLite."""
    uri = mlflow.get_tracking_uri()
    file = sqlite_file(uri)
    return uri if file is None else f"sqlite:///{file.absolute()}"


def make_client(uri: str) -> MlflowClient:
    """Return a client that fails after seconds; MLflow's default is minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow logs each failure of its database with a traceback; callers report the failure.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(uri)


def find_experiment(client: MlflowClient, uri: str) -> Experiment | None:
    """Return the experiment of all runs, None if it does not exist yet.

    Raises:
        TrackingError: the experiment was deleted, or its database was moved or copied.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise TrackingError(
            f"MLflow at {masked(uri)}: "
            f"{deleted_message('experiment', experiment.experiment_id)} ({EXPERIMENT})"
        )
    if experiment is not None:
        check_folder(experiment, uri)
    return experiment


def search(client: MlflowClient, experiment_id: str, condition: str) -> list[Run]:
    """Return all runs of an experiment that match a filter string."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], condition, page_token=token)
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def check_reachable() -> None:
    """Check that the MLflow server is reachable, compatible and accepts our credentials.

    Raises:
        TrackingError: the server cannot be used, or the database would be lost with a job's folder.
    """
    uri = tracking_uri()
    if re.search(r"://[^/\s@]*:[^/\s@]+@", uri):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {masked(uri)}, with a password in it, which would be sent to "
            "every process of a run; remove it and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or write ~/.mlflow/credentials"
        )
    is_here = Path(uri.removeprefix("sqlite:///")).is_relative_to(Path.cwd())
    if is_here and in_submitted_job():
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {masked(os.environ.get('MLFLOW_TRACKING_URI', 'not set'))}: "
            "the working folder of a submitted job is deleted after the job; "
            "set the URI of an MLflow server"
        )
    if not uri.startswith(("http://", "https://")):
        return
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=5)
    except requests.RequestException as error:
        remedy = proxy_remedy(uri) or "start its server or set MLFLOW_TRACKING_URI to a running one"
        raise TrackingError(
            f"MLflow at {masked(uri)} does not answer ({type(error).__name__}); {remedy}"
        ) from error
    try:
        make_client(uri).search_experiments(max_results=1)
        version = server_version(uri)
    except FAILURES as error:
        causes = "; ".join(filter(None, (explain(error), proxy_remedy(uri))))
        raise TrackingError(f"MLflow at {masked(uri)} cannot be used: {causes}") from error
    check_version(uri, version)


def check_version(uri: str, version: str) -> None:
    """Reject a server whose version may not support this client's calls.

    Raises:
        TrackingError: the server is older, of another major version, or not an MLflow server.
    """
    ours = [int(part) for part in mlflow.__version__.split(".")[:2]]
    theirs = [int(part) for part in re.findall(r"\d+", version[:20])[:2]]
    if theirs[:1] != ours[:1] or theirs < ours:
        raise TrackingError(
            f"MLflow at {masked(uri)} is version {version[:20]!r}, and this client is "
            f"{mlflow.__version__}: install {mlflow.__version__} there and upgrade its database "
            "(mlflow db upgrade), or set MLFLOW_TRACKING_URI to another server"
        )
