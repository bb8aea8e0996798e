"""MLflow client: reachability and version of the server, searches, and error texts."""

import os
import re
from pathlib import Path

import mlflow
import requests
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.entities import Run
from sqlalchemy.exc import SQLAlchemyError

from cluster.config import in_submitted_job
from cluster.errors import TrackingError
from cluster.tracking.mlflow_internals import configured_user, server_version

EXPERIMENT = "ranet"
"""Name of the MLflow experiment that holds every run."""
FAILURES = (
    mlflow.MlflowException,
    OSError,  # includes the errors of requests
    SQLAlchemyError,
    Boto3Error,
    BotoCoreError,
    ClientError,
)
"""Exceptions of MLflow, its database and its artifact store."""


def tracking_uri() -> str:
    """Return MLflow's tracking URI, with an absolute path for SQLite."""
    uri = mlflow.get_tracking_uri()
    file = sqlite_file(uri)
    return uri if file is None else f"sqlite:///{file.absolute()}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite URI, None for other URIs."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(path)


def make_client(uri: str) -> MlflowClient:
    """Return a client that fails after seconds; MLflow's default is minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return MlflowClient(uri)


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
        raise TrackingError(
            f"MLflow at {masked(uri)} does not answer ({type(error).__name__}); "
            "start its server or set MLFLOW_TRACKING_URI to a running one"
        ) from error
    try:
        make_client(uri).search_experiments(max_results=1)
        version = server_version(uri)
    except FAILURES as error:
        raise TrackingError(f"MLflow at {masked(uri)} cannot be used: {explain(error)}") from error
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


def explain(error: Exception) -> str:
    """Explain the cause and the remedy of an MLflow failure."""
    status = _http_status(error)
    user = configured_user()
    text = first_line(error)
    if status == 401:
        problem = f"user {user} with this password" if user else "calls without a user"
        return (
            f"it rejects {problem}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "write ~/.mlflow/credentials, on the machine of the driver"
        )
    if status == 403 and "Host header" in str(error):
        return (
            "the host name of this URI is not in its list of allowed hosts; add the name and port "
            "of the URI to MLFLOW_SERVER_ALLOWED_HOSTS where the server starts, or use an allowed "
            "name"
        )
    if status == 403:
        return f"user {user} may not do this; ask its administrator for write permission ({text})"
    if "too many 503" in text or "No space left" in str(error):
        return (
            "its database does not accept writes; read the server's log, and free space on "
            "PostgreSQL's disk where that is full"
        )
    return f"{text}; start its server or set MLFLOW_TRACKING_URI"


def _http_status(error: Exception) -> int | None:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code
    return error.get_http_status_code() if isinstance(error, mlflow.MlflowException) else None


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, without users and passwords."""
    text = masked(str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def masked(text: str) -> str:
    """Return a text with `***` for the credentials in its URIs."""
    return re.sub(r"(?<=://)[^/\s@]*@", "***@", text)
