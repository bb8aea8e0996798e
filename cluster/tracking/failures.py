"""Failures of MLflow: permanent or transient, with cause and remedy."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import requests
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.exc import SQLAlchemyError

from cluster.errors import TrackingError
from cluster.tracking.mlflow_internals import configured_user

FAILURES = (
    mlflow.MlflowException,
    OSError,  # includes the errors of requests
    SQLAlchemyError,
    Boto3Error,
    BotoCoreError,
    ClientError,
)
"""Exceptions of MLflow, its database and its artifact store."""

_HIDDEN_CAUSE = "Failed to download artifacts from path"
"""MLflow's message, with status 404, for any failed download, whatever its cause."""
_DELETED = re.compile(r"The (run|experiment) (\w+) must be in the 'active' state")
_RESTORE = {
    "run": "mlflow runs restore --run-id",
    "experiment": "mlflow experiments restore --experiment-id",
}
_NO_CONNECTION = re.compile(
    r"Max retries exceeded|Connection re(?:fused|set)|Connection aborted|timed out|"
    r"could not (connect|translate host)|connection to server|Failed to resolve",
    re.IGNORECASE,
)
_DATABASE_REMEDIES = {
    "database is locked": "another process holds it; end that process and run the command again",
    "unable to open database file": "its folder does not exist or cannot be written; correct "
    "MLFLOW_TRACKING_URI or the permissions",
    "readonly database": "give this user write permission for the file and its folder",
    "not a database": "MLFLOW_TRACKING_URI must name a SQLite file of MLflow",
    "disk image is malformed": "the file is damaged; restore it from a copy",
    "out-of-date database schema": "upgrade it: mlflow db upgrade URI",
}


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn failures of MLflow into one sentence with the remedy.

    Raises:
        TrackingError: MLflow failed.
    """
    try:
        yield
    except FAILURES as error:
        raise TrackingError(f"MLflow at {masked(uri)} cannot be used: {explain(error)}") from error


def is_permanent(error: Exception) -> bool:
    """Return whether a retry cannot help: MLflow rejects the call."""
    if _HIDDEN_CAUSE in str(error):
        return False
    status = http_status(error)
    rejected = status is not None and 400 <= status < 500 and status not in (408, 429)
    return rejected or isinstance(error, PermissionError)


def explain(error: Exception) -> str:
    """Explain the cause and the remedy of an MLflow failure."""
    text, whole, status = first_line(error), str(error), http_status(error)
    if deleted := _DELETED.search(whole):
        return deleted_message(deleted[1], deleted[2])
    if status in (401, 403):
        return _explain_rejection(text, whole, status)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text}; free space there"
    if "too many 503" in text or "No space left" in whole or "disk is full" in whole:
        return (
            "its database does not accept writes; read the server's log, and free space on the "
            "disk of the database where that is full"
        )
    if _HIDDEN_CAUSE in whole:
        return f"{text} Check that its server and the storage of its artifacts answer"
    for sign, remedy in _DATABASE_REMEDIES.items():
        if sign in whole:
            return f"{text}; {remedy}"
    if isinstance(error, requests.ConnectionError | requests.Timeout) or _NO_CONNECTION.search(
        whole
    ):
        return f"{text}; start its server or set MLFLOW_TRACKING_URI"
    if status == 404 or getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
        return f"{text}; correct the name, or set MLFLOW_TRACKING_URI to the MLflow that has it"
    if isinstance(error, OSError) and error.strerror:
        return f"{text}; correct that file or folder and run the command again"
    return text


def _explain_rejection(text: str, whole: str, status: int) -> str:
    user = configured_user()
    if status == 401:
        problem = f"user {user} with this password" if user else "calls without a user"
        return (
            f"it rejects {problem}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "write ~/.mlflow/credentials, on the machine of the driver"
        )
    if "Host header" in whole:
        return (
            "the host name of this URI is not in its list of allowed hosts; add the name and port "
            "of the URI to MLFLOW_SERVER_ALLOWED_HOSTS where the server starts, or use an allowed "
            "name"
        )
    return f"user {user} may not do this; ask its administrator for write permission ({text})"


def deleted_message(kind: str, entity_id: str) -> str:
    """Return the error message for a deleted run or experiment.

    Args:
        kind: run or experiment.
        entity_id: ID in MLflow.
    """
    return f"the {kind} {entity_id} was deleted; restore it: {_RESTORE[kind]} {entity_id}"


def http_status(error: Exception) -> int | None:
    """Return the HTTP status of a failure, None for other failures."""
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
