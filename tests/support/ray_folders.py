"""Folders for Ray, by which all that was started with one is found and ended."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def ray_folder() -> Iterator[str]:
    """Give a folder for RAY_TMPDIR; leave nothing of it behind, no process either."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need short paths
    try:
        yield folder
    finally:
        kill_family(folder)
        shutil.rmtree(folder, ignore_errors=True)


def family(folder: str) -> list[psutil.Process]:
    """All living processes that were given this folder for Ray: drivers, and what Ray started."""
    own = []
    for process in psutil.process_iter():
        try:
            if (
                process.status() != psutil.STATUS_ZOMBIE
                and process.environ().get("RAY_TMPDIR") == folder
            ):
                own.append(process)
        except psutil.Error:  # it ended meanwhile, or is not ours
            continue
    return own


def kill_family(folder: str) -> None:
    """End them, and those that start meanwhile."""
    while processes := family(folder):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=5)
