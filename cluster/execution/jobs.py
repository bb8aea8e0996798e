"""Submit Ray jobs, stream their logs and report their final status."""

import asyncio
import re
import tempfile
import time
import zipfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.cli import script_command
from cluster.errors import RanetError
from cluster.execution.ray_internals import pack_code, request_headers
from cluster.retry import Retry

CODE_BYTES = 20_000_000
"""Size limit of the packed code, in bytes; a larger package probably contains data."""
LOG_TIMEOUT_SECONDS = 30.0
"""Time without new log lines after which the status of the job is queried."""
RETRY_TIMEOUT_SECONDS = 300.0
"""Timeout for an unreachable cluster while a job is followed."""
TOKEN_MESSAGE = (
    "the cluster requires a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
    "(see docs/operating/cluster.md)"
)
_SECRET_VARIABLE = re.compile(r"secret|passw|token|key", re.IGNORECASE)
_SECRET_SETTING = re.compile(
    r"(secret|passw|token|access_?key|api_?key)[\w.-]*\s*[=:]\s*\S", re.IGNORECASE
)
_USER_IN_URL = re.compile(r"://[^/\s@]*@")


class JobError(RanetError):
    """Job that was not submitted or cannot be followed."""


def check_code(folder: Path, limit: int = CODE_BYTES) -> int:
    """Return the packed size of a folder's code, in bytes.

    The folder is packed as Ray does, without the files that .gitignore and .rayignore exclude.

    Raises:
        JobError: the package exceeds `limit` bytes; the message lists the largest files.
    """
    with tempfile.TemporaryDirectory(prefix="ranet-code-") as scratch:
        package = Path(scratch) / "code.zip"
        pack_code(folder, package)
        size = package.stat().st_size
        if size <= limit:
            return size
        with zipfile.ZipFile(package) as content:
            largest = sorted(content.infolist(), key=lambda file: -file.compress_size)[:5]
    listed = ", ".join(f"{file.filename} {file.compress_size / 1e6:.1f} MB" for file in largest)
    raise JobError(
        f"the code package of {folder} is {size / 1e6:.1f} MB, above the limit of "
        f"{limit / 1e6:.0f} MB; add non-code files to .rayignore: {listed}"
    )


def check_public(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Check that the command and environment of a job contain no secrets.

    Args:
        command: words of the job's command.
        environment: environment variables of the job.

    Raises:
        JobError: the message names the variable or the word's position, not the secret.
    """
    findings = [f"variable {name}" for name in environment if _SECRET_VARIABLE.search(name)]
    texts = {f"variable {name}": value for name, value in environment.items()}
    texts |= {f"word {number} of the command": word for number, word in enumerate(command, start=1)}
    for source, text in texts.items():
        if _USER_IN_URL.search(text) or _SECRET_SETTING.search(text):
            findings.append(source)
    if findings:
        raise JobError(
            f"{findings[0]} looks like a secret, and the Ray dashboard shows the command and the "
            "environment of a job; nothing was sent; give the nodes a role, or copy the secret to "
            "the head node before the job (docs/operating/submitting.md)"
        )


def connect(address: str) -> JobSubmissionClient:
    """Connect to a cluster's dashboard with the token from the environment.

    Raises:
        JobError: the cluster is unreachable or requires another token.
    """
    try:
        requests.get(f"{address}/api/version", timeout=10)
        return JobSubmissionClient(address)
    except (requests.RequestException, ConnectionError) as error:
        raise JobError(
            f"RAY_API_SERVER_ADDRESS is {address}: no cluster answers there "
            f"({type(error).__name__}); start the cluster, or forward its port: ray dashboard "
            "ray_cluster.yaml"
        ) from error
    except AuthenticationError as error:
        raise JobError(f"{address}: {TOKEN_MESSAGE}") from error
    except RuntimeError as error:
        raise JobError(
            f"the cluster at {address} rejects the connection: {_brief(error)}"
        ) from error


def submit(
    client: JobSubmissionClient, entrypoint: str, folder: Path, environment: Mapping[str, str]
) -> str:
    """Upload a folder's code, start a command, and return the job ID.

    Raises:
        JobError: the cluster rejects the job.
    """
    try:
        return client.submit_job(
            entrypoint=entrypoint,
            runtime_env={"working_dir": str(folder), "env_vars": dict(environment)},
        )
    except RuntimeError as error:
        raise JobError(f"the cluster rejects the job: {_brief(error)}") from error


def follow(client: JobSubmissionClient, job_id: str, write: Callable[[str], object]) -> JobStatus:
    """Write a job's log until its end; return its final status.

    Lost connections are re-established, and no text is written twice.

    Raises:
        JobError: the job does not exist, the head was restarted without it, or the cluster did not
            answer for RETRY_TIMEOUT_SECONDS.
    """
    written, is_known = 0, False
    retry = Retry(timeout_seconds=RETRY_TIMEOUT_SECONDS, max_pause_seconds=1.0)
    while True:
        # The status comes first: Ray writes the headers of a failed request for a log, the token
        # among them, into its own log files.
        try:
            status = _status(client, job_id)
        except requests.RequestException as error:
            if not retry.wait():
                raise JobError(
                    f"the cluster has not answered for {RETRY_TIMEOUT_SECONDS:.0f} seconds "
                    f"({type(error).__name__}); the job continues if the head node is alive; "
                    f"to follow it again: {script_command('submit.py')} --follow {job_id}"
                ) from error
            continue
        if status is None:
            raise JobError(
                f"the head of the cluster was restarted and lost job {job_id}; submit the same "
                "command again, and its run resumes from the latest checkpoint"
                if is_known
                else f"no job {job_id} on this cluster; `ray job list` shows its jobs"
            )
        is_known = True
        written += asyncio.run(_stream(client, job_id, written, write))
        if status.is_terminal():
            return status
        # The timeout of an unreachable cluster starts at the end of its log, not at the status.
        retry.reset()
        time.sleep(1)


async def _stream(
    client: JobSubmissionClient, job_id: str, known: int, write: Callable[[str], object]
) -> int:
    """Write the log after its first `known` characters; return their number."""
    position = 0
    stream = client.tail_job_logs(job_id)
    assert isinstance(stream, AsyncGenerator)
    try:
        while True:
            text = await asyncio.wait_for(anext(stream), LOG_TIMEOUT_SECONDS)
            new = text[max(known - position, 0) :]
            position += len(text)
            if new:
                write(new)
    except (StopAsyncIteration, TimeoutError, aiohttp.ClientError, RuntimeError, OSError):
        return max(position - known, 0)
    finally:
        await stream.aclose()


def _status(client: JobSubmissionClient, job_id: str) -> JobStatus | None:
    """Return the status of a job; None without such a job."""
    answer = requests.get(
        f"{client.get_address()}/api/jobs/{job_id}", headers=request_headers(client), timeout=10
    )
    if answer.status_code == 404:
        return None
    if answer.status_code in (401, 403):
        raise JobError(TOKEN_MESSAGE)
    answer.raise_for_status()
    return JobStatus(answer.json()["status"])


def _brief(error: RuntimeError) -> str:
    return " ".join(str(error).split())[:500]
