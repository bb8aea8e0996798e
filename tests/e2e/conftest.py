"""The cluster of several hosts that tests share."""

import time
from collections.abc import Iterator

import pytest
from ray.job_submission import JobSubmissionClient

from cluster.local.cluster import LocalCluster, local_cluster
from tests.support.training import PROJECT


@pytest.fixture(scope="session")
def cluster_of_session() -> Iterator[LocalCluster]:
    """Cluster of all tests, which takes half a minute to start.

    Its folder is always the same, so that a test run ends the processes of a killed one.
    """
    folder = PROJECT / "outputs" / "cluster-of-tests"
    with local_cluster(folder, num_hosts=2, fresh=True) as cluster:
        yield cluster


@pytest.fixture
def cluster(cluster_of_session: LocalCluster) -> LocalCluster:
    """Head and two hosts of one CPU each, alive and without jobs."""
    cluster_of_session.resume(*cluster_of_session.members)
    dead = [name for name in cluster_of_session.members if not cluster_of_session.processes(name)]
    deadline = time.monotonic() + 60
    while "head" not in dead and set(dead) & cluster_of_session.living_nodes().keys():
        assert time.monotonic() < deadline  # Ray counts a killed host as living for 15 s
        time.sleep(0.5)
    cluster_of_session.start(*dead)
    jobs = JobSubmissionClient(
        cluster_of_session.environment["RAY_API_SERVER_ADDRESS"],
        headers=cluster_of_session.ray_headers,
    )
    for job in jobs.list_jobs():
        if job.submission_id and not job.status.is_terminal():
            jobs.stop_job(job.submission_id)
    return cluster_of_session
