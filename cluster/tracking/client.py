"""The MLflow client: its address, its failures, and whether its server can be used."""

import os
import re
from pathlib import Path

import mlflow
import requests
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.credentials import get_default_host_creds, read_mlflow_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy.exc import SQLAlchemyError

from cluster.config import in_submitted_job
from cluster.errors import TrackingError

EXPERIMENT = "ranet"
"""Name of the MLflow experiment that holds every run."""
FAILURES = (
    mlflow.MlflowException,
    OSError,  # those of requests among them
    SQLAlchemyError,
    Boto3Error,
    BotoCoreError,
    ClientError,
)
"""What MLflow, its database and its store raise where they cannot be used."""


def tracking_uri() -> str:
    """Return MLflow's address, with the path of a SQLite file made absolute for other processes."""
    uri = mlflow.get_tracking_uri()
    file = sqlite_file(uri)
    return uri if file is None else f"sqlite:///{file.absolute()}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite URI, None for other URIs."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri else Path(path)


def check_reachable() -> None:
    """Knock at MLflow's door: does a server answer, of a version that fits, and let us in?

    Raises:
        TrackingError: it does not, or what it keeps would be thrown away.
    """
    uri = tracking_uri()
    if re.search(r"://[^/\s@]*:[^/\s@]+@", uri):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {masked(uri)}, with a password in it, which would be sent to "
            "every process of a run; leave it out and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or write ~/.mlflow/credentials"
        )
    is_here = Path(uri.removeprefix("sqlite:///")).is_relative_to(Path.cwd())
    if is_here and in_submitted_job():
        raise TrackingError(
            f"MLFLOW_TRACKING_URI is {masked(os.environ.get('MLFLOW_TRACKING_URI', 'not set'))}: a "
            "submitted job runs in a folder that is thrown away; give the address of a server"
        )
    if not uri.startswith(("http://", "https://")):
        return
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=5)
    except requests.RequestException as error:
        raise TrackingError(
            f"MLflow at {masked(uri)} does not answer ({type(error).__name__}); "
            "start its server or set MLFLOW_TRACKING_URI to one that runs"
        ) from error
    try:
        make_client(uri).search_experiments(max_results=1)
        answer = http_request(get_default_host_creds(uri), "/version", "GET")
    except FAILURES as error:
        raise TrackingError(f"MLflow at {masked(uri)} cannot be used: {explain(error)}") from error
    check_version(uri, "" if answer is None else answer.text)


def check_version(uri: str, version: str) -> None:
    """Refuse a server that may not know what this client asks for.

    Raises:
        TrackingError: it is older, or of another major version, or no MLflow.
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
    """Say in one sentence what a failure of MLflow's means, and what to do."""
    status = _http_status(error)
    user = read_mlflow_creds().username
    text = first_line(error)
    if status == 401:
        problem = f"user {user} with this password" if user else "calls without a user"
        return (
            f"it refuses {problem}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "write ~/.mlflow/credentials, on the machine of the driver"
        )
    if status == 403 and "Host header" in str(error):
        return (
            "it does not know itself by this name; add the name and port of the address to "
            "MLFLOW_SERVER_ALLOWED_HOSTS where the server starts, or use another of its names"
        )
    if status == 403:
        return f"user {user} may not do this; ask its administrator for the right to write ({text})"
    if "too many 503" in text or "No space left" in str(error):
        return (
            "its database does not take what is written; look into the server's log, and free "
            "space on PostgreSQL's disk where that is full"
        )
    return f"{text}; start its server or set MLFLOW_TRACKING_URI"


def _http_status(error: Exception) -> int | None:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code
    return error.get_http_status_code() if isinstance(error, mlflow.MlflowException) else None


def make_client(uri: str) -> MlflowClient:
    """Return a quiet client that gives up after seconds: MLflow's own default is minutes."""
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


def first_line(error: Exception) -> str:
    """Return the first line of an error, with credentials masked."""
    text = masked(str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def masked(text: str) -> str:
    """Return a text without the users and passwords of the addresses in it."""
    return re.sub(r"(?<=://)[^/\s@]*@", "***@", text)
