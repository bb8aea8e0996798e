"""Processes that are found and killed by a variable of their environment."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator

import psutil


def marked_processes(variable: str, *values: str) -> list[psutil.Process]:
    """Return the live processes whose environment has one of some values."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get(variable) in values
            ):
                found.append(process)
        except psutil.Error:  # the process has ended, or belongs to another user
            continue
    return found


def kill_marked(variable: str, *values: str) -> None:
    """Kill the processes whose environment has one of some values."""
    # Repeated for processes that start meanwhile.
    while processes := marked_processes(variable, *values):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=5)


@contextlib.contextmanager
def ray_folder() -> Iterator[str]:
    """Yield a folder for RAY_TMPDIR, and kill its processes at the end."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need short paths
    try:
        yield folder
    finally:
        kill_marked("RAY_TMPDIR", folder)
        shutil.rmtree(folder, ignore_errors=True)
