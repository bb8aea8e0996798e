"""Processes that are found and killed by a variable of their environment."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local.processes import kill_marked, marked_processes, ray_folder

VARIABLE = "RANET_TEST_MARK"


def start(mark: str, variable: str = VARIABLE) -> subprocess.Popen[bytes]:
    """Start a shell whose child outlives it, both with a mark."""
    return subprocess.Popen(
        ["bash", "-c", "sleep 600 & exec sleep 600"], env={**os.environ, variable: mark}
    )


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [start("a"), start("b"), start("ab")]
    yield started
    kill_marked(VARIABLE, "a", "b", "ab")
    for process in started:
        process.wait(10)


def test_processes_with_other_marks_are_neither_found_nor_killed(processes):
    first, second, third = processes
    kill_marked(VARIABLE, "a")
    first.wait(10)
    assert marked_processes(VARIABLE, "a") == []
    assert {second.pid, third.pid} <= {
        each.pid for each in marked_processes(VARIABLE, "b", "ab", "other")
    }
    assert second.poll() is None
    assert third.poll() is None


def test_folder_of_ray_is_removed_with_its_processes_after_an_error():
    started = []
    with pytest.raises(KeyError), ray_folder() as folder:  # noqa: PT012
        started.append(start(folder, "RAY_TMPDIR"))
        raise KeyError
    started[0].wait(10)
    assert marked_processes("RAY_TMPDIR", folder) == []
    assert not Path(folder).exists()
