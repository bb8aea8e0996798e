"""Distribution of the tests over the worker processes of pytest-xdist."""

import os

import pytest

SHARED_CLUSTER = "cluster"
"""Group of the tests that share the cluster of several hosts."""
LONG_FILES = (
    "test_tune.py", "test_train_resume.py", "test_train_s3.py", "test_train_mlflow.py",
    "test_train_cluster.py", "test_staging.py", "test_prepare_data.py", "test_evaluate.py",
)  # fmt: skip
"""Files of end-to-end tests by duration, the longest first."""


IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests that share expensive fixtures; put the longest tests first.

    A group runs in one worker, in the order of its files. Every end-to-end test without a group
    runs wherever a worker is free; other tests stay with those of their file.
    """
    if IS_WORKER:
        for item in items:
            if group := _group(item):
                item.add_marker(pytest.mark.xdist_group(group))
        items.sort(key=_turn)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Reject a distribution that ignores groups.

    pytest-xdist 3.8.0 ignores them with pytest 9.2.0, without a message.
    """
    if (
        IS_WORKER
        and _group(item) == SHARED_CLUSTER
        and not item.nodeid.endswith(f"@{_group(item)}")
    ):
        pytest.fail(
            "tests of the shared cluster must run in one worker, but groups are ignored: use "
            "--dist loadgroup, and pytest and pytest-xdist in the versions of constraints.txt",
            pytrace=False,
        )


def _group(item: pytest.Item) -> str:
    if "cluster_of_session" in getattr(item, "fixturenames", ()):
        return SHARED_CLUSTER
    if item.get_closest_marker("e2e"):
        return ""
    return item.nodeid.partition("::")[0]


def _turn(item: pytest.Item) -> tuple[int, int]:
    """Return the position of a test's file: cluster, end-to-end, several processes, unit."""
    if _group(item) == SHARED_CLUSTER:
        return 0, 0
    if item.get_closest_marker("e2e"):
        name = item.path.name
        return 1, LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)
    return (2 if item.get_closest_marker("distributed") else 3), 0
