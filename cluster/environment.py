"""Checks of the environment variables of this process, before anything is started."""

import os
import re
import tempfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from cluster.errors import RunError

SOCKET_BYTES = 107
"""Max. length of a Unix socket's path on Linux."""
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


def check_ray_settings() -> None:
    """Check RAY_ADDRESS, or the folder of a local cluster's sockets.

    Raises:
        RunError: Ray could not connect or start.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        _check_address(address)
    else:
        _check_socket_folder()


def _check_address(address: str) -> None:
    if address in ("auto", "local") or re.fullmatch(r"(\[[\da-fA-F:]+\]|[^/:\s]+):\d+", address):
        return
    raise RunError(
        f"RAY_ADDRESS is {address}: it must be HOST:PORT of the head node, as in 10.0.0.1:6379, or "
        "auto on a node of the cluster; to send a job from outside, set RAY_API_SERVER_ADDRESS to "
        "http://HOST:8265 and use pipelines/submit.py"
    )


def _check_socket_folder() -> None:
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    folder = os.environ[name] if name else "/tmp"
    excess = len(os.fsencode(folder + _SOCKET)) - SOCKET_BYTES
    if excess > 0:
        raise RunError(
            f"{name or 'the temporary folder'} is {folder}, {excess} bytes too long for the paths "
            "of Ray's sockets; set RAY_TMPDIR to a short folder, such as /tmp"
        )
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(
            f"{name or 'the temporary folder'} is {folder}: Ray cannot write there "
            f"({error.strerror}); set RAY_TMPDIR to another folder"
        ) from error


def check_cache_folder(setting: str, folder: str) -> None:
    """Check that a folder in the home folder, or elsewhere on this machine, can be written.

    Raises:
        RunError: it cannot; the message names the setting.
    """
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise RunError(
            f"{setting} is {folder}: cannot write to {path} ({error.strerror}); set another "
            "folder, or HOME to a folder that can be written"
        ) from error


def proxy_remedy(url: str) -> str:
    """Return the remedy where calls to a URL go through a proxy, else an empty text."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not getproxies().get(parts.scheme) or proxy_bypass(host):
        return ""
    return f"{parts.scheme.upper()}_PROXY is set: add {host} to NO_PROXY if no proxy leads there"
