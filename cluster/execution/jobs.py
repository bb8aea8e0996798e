"""Jobs on a Ray cluster: only code travels, and what is followed tells the truth in the end."""

import asyncio
import re
import tempfile
import time
import zipfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path

import aiohttp
import requests
from ray._private.runtime_env.packaging import create_package
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.errors import RanetError
from cluster.retry import Retry

CODE_BYTES = 20_000_000
"""How much may travel, packed: more is data that got in between the code."""
SILENCE_SECONDS = 30.0
"""After so long without a word of the job we ask whether it still runs."""
RETRY_TIMEOUT_SECONDS = 300.0
"""How long the cluster may be away while a job is followed."""
REFUSED = (
    "the cluster refuses us: it asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to "
    "its own (docs/operating.md says where from)"
)
_SECRET_VARIABLE = re.compile(r"secret|passw|token|key", re.IGNORECASE)
_SECRET_SETTING = re.compile(
    r"(secret|passw|token|access_?key|api_?key)[\w.-]*\s*[=:]\s*\S", re.IGNORECASE
)
_USER_IN_ADDRESS = re.compile(r"://[^/\s@]*@")


class JobError(RanetError):
    """A job that was not submitted, or cannot be followed; the message says why."""


def check_code(folder: Path, limit: int = CODE_BYTES) -> int:
    """Pack a folder as Ray does, without what .gitignore and .rayignore name; give its bytes.

    Raises:
        JobError: it has more than `limit` bytes; the largest files are named.
    """
    with tempfile.TemporaryDirectory(prefix="ranet-code-") as scratch:
        package = Path(scratch) / "code.zip"
        create_package(str(folder), package, include_gitignore=True)
        size = package.stat().st_size
        if size <= limit:
            return size
        with zipfile.ZipFile(package) as content:
            largest = sorted(content.infolist(), key=lambda each: -each.compress_size)[:5]
    named = ", ".join(f"{each.filename} {each.compress_size / 1e6:.1f} MB" for each in largest)
    raise JobError(
        f"{folder} has {size / 1e6:.1f} MB to travel, more than {limit / 1e6:.0f}; name in "
        f".rayignore what is no code: {named}"
    )


def check_public(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Refuse what looks like a secret: Ray shows a job's command and variables on its dashboard.

    Args:
        command: words of the job's command.
        environment: variables that it would get.

    Raises:
        JobError: it names the place and not the secret.
    """
    places = [f"variable {name}" for name in environment if _SECRET_VARIABLE.search(name)]
    texts = {f"variable {name}": value for name, value in environment.items()}
    texts |= {f"word {number} of the command": word for number, word in enumerate(command, start=1)}
    for place, text in texts.items():
        if _USER_IN_ADDRESS.search(text) or _SECRET_SETTING.search(text):
            places.append(place)
    if places:
        raise JobError(
            f"{places[0]} looks like a secret. Ray shows a job's variables to whoever sees its "
            "dashboard, and its command as well; nothing was sent: give the nodes a role, or the "
            "secret to the head before the job (docs/operating.md)"
        )


def connect(address: str) -> JobSubmissionClient:
    """Connect to the dashboard of a cluster, with the token in the environment.

    Raises:
        JobError: nobody answers there, or it takes another token.
    """
    try:
        requests.get(f"{address}/api/version", timeout=10)
        return JobSubmissionClient(address)
    except (requests.RequestException, ConnectionError) as error:
        raise JobError(
            f"RAY_API_SERVER_ADDRESS is {address}: no cluster answers there "
            f"({type(error).__name__}); start it, or open the way to it: ray dashboard "
            "ray_cluster.yaml"
        ) from error
    except AuthenticationError as error:
        raise JobError(f"{address}: {REFUSED}") from error
    except RuntimeError as error:
        raise JobError(f"{address} refuses: {_brief(error)}") from error


def submit(
    client: JobSubmissionClient, entrypoint: str, folder: Path, environment: Mapping[str, str]
) -> str:
    """Send a folder's code and start a command there; return the job's id.

    Raises:
        JobError: the cluster refuses.
    """
    try:
        return client.submit_job(
            entrypoint=entrypoint,
            runtime_env={"working_dir": str(folder), "env_vars": dict(environment)},
        )
    except RuntimeError as error:
        raise JobError(f"the cluster refuses: {_brief(error)}") from error


def follow(client: JobSubmissionClient, job_id: str, write: Callable[[str], object]) -> JobStatus:
    """Write what a job says, from its beginning, until it ends; return how it ended.

    A connection that is lost is made again, and nothing is written twice.

    Raises:
        JobError: there is no such job, or the cluster did not answer for RETRY_TIMEOUT_SECONDS.
    """
    written = 0
    retry = Retry(timeout_seconds=RETRY_TIMEOUT_SECONDS, max_pause_seconds=1.0)
    while True:
        if new := asyncio.run(_stream(client, job_id, written, write)):
            written += new
            retry.reset()
        try:
            status = _status(client, job_id)
        except requests.RequestException as error:
            if not retry.wait():
                raise JobError(
                    f"the cluster has not answered for {RETRY_TIMEOUT_SECONDS:.0f} seconds "
                    f"({type(error).__name__}); the job goes on if its head does: "
                    f"python pipelines/submit.py --follow {job_id}"
                ) from error
        else:
            if status.is_terminal():
                asyncio.run(_stream(client, job_id, written, write))  # what came meanwhile
                return status
            retry.reset()
            time.sleep(1)


async def _stream(
    client: JobSubmissionClient, job_id: str, known: int, write: Callable[[str], object]
) -> int:
    """Write what comes after the first `known` characters; return how many those were."""
    position = 0
    stream = client.tail_job_logs(job_id)
    assert isinstance(stream, AsyncGenerator)
    try:
        while True:
            text = await asyncio.wait_for(anext(stream), SILENCE_SECONDS)
            new = text[max(known - position, 0) :]
            position += len(text)
            if new:
                write(new)
    except (StopAsyncIteration, TimeoutError, aiohttp.ClientError, RuntimeError, OSError):
        return max(position - known, 0)
    finally:
        await stream.aclose()


def _status(client: JobSubmissionClient, job_id: str) -> JobStatus:
    answer = requests.get(
        f"{client.get_address()}/api/jobs/{job_id}", headers=client._headers, timeout=10
    )
    if answer.status_code == 404:
        raise JobError(f"no job {job_id} on this cluster; `ray job list` names those there are")
    if answer.status_code in (401, 403):
        raise JobError(REFUSED)
    answer.raise_for_status()
    return JobStatus(answer.json()["status"])


def _brief(error: RuntimeError) -> str:
    return " ".join(str(error).split())[:500]
