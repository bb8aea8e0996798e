"""Distribution of a small suite over the workers of pytest-xdist."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.paths import PROJECT

CONFTEST = """
import pytest

from tests.support.distribution import pytest_collection_modifyitems, pytest_runtest_setup


@pytest.fixture(scope="session")
def cluster_of_session():
    return None


@pytest.fixture
def cluster(cluster_of_session):
    return None
"""
UNIT = "import pytest\n\n\n@pytest.mark.parametrize('k', range(9))\ndef test_unit(k):\n    pass\n"
END_TO_END = """
import time

import pytest

pytestmark = pytest.mark.e2e


def test_without_cluster():
    time.sleep(0.3)


@pytest.mark.parametrize("k", range(3))
def test_with_cluster(cluster, k):
    time.sleep(0.3)
"""
INI = "[pytest]\nmarkers =\n    e2e: whole pipelines\n    distributed: several processes\n"


def run_suite(folder: Path, *options: str) -> tuple[int, str]:
    """Run a suite of unit and end-to-end tests; return status and output."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text(INI)
    for name in ("test_a.py", "test_b.py"):
        (folder / name).write_text(UNIT)
    for name in ("test_m.py", "test_n.py", "test_tune.py"):
        (folder / name).write_text(END_TO_END)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=environment | {"PYTHONPATH": os.pathsep.join(map(str, [PROJECT, *sys.path]))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def test_tests_of_the_cluster_run_in_one_worker_and_unit_tests_last(tmp_path: Path):
    options = ("-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder")
    status, output = run_suite(tmp_path, *options)
    assert status == 0, output
    ran = re.findall(r"\[(gw\d)\] .* PASSED (test_\w+\.py)::(\w+)", output)
    assert len(ran) == 30
    cluster = [(worker, file) for worker, file, name in ran if name == "test_with_cluster"]
    assert len({worker for worker, _ in cluster}) == 1
    assert [file for _, file in cluster] == sorted(file for _, file in cluster)
    others = [(worker, file) for worker, file, name in ran if name != "test_with_cluster"]
    assert others[0][1] == "test_tune.py"  # the longest file
    assert {file for _, file in others[:3]} == {"test_tune.py", "test_m.py", "test_n.py"}
    for unit in ("test_a.py", "test_b.py"):
        assert len({worker for worker, file in others if file == unit}) == 1


def test_distribution_without_groups_is_rejected(tmp_path: Path):
    status, output = run_suite(tmp_path, "-n", "2")
    assert status != 0
    assert "tests of the shared cluster must run in one worker" in output
    assert not re.search(r"PASSED test_\w+.py::test_with_cluster", output)


def test_order_without_workers_is_that_of_the_files(tmp_path: Path):
    status, output = run_suite(tmp_path)
    assert status == 0, output
    files = re.findall(r"(test_\w+\.py)::\w+.* PASSED", output)
    assert files == sorted(files)
    assert len(files) == 30
