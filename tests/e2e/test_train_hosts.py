"""Training on several hosts while hosts and servers are lost and come back."""

import logging
import re
import time

import pytest
from ray.job_submission import JobStatus

from tests.e2e.jobs import Job

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

logger = logging.getLogger(__name__)


def times_of(pattern, job):
    return len(re.findall(pattern, job.output()))


def test_a_run_goes_on_without_a_lost_host_and_without_mlflow_and_grows_back(cluster, tmp_path):
    job = Job(
        cluster, tmp_path, "elastic", "--train.epochs=45",
        "--cluster.num_workers=[1,2]", "--cluster.resize_seconds=5",
    )  # fmt: skip
    job.wait_until(lambda: len(job.epochs()) >= 2)
    cluster.kill("host2")
    killed, reached = time.monotonic(), len(job.epochs())
    job.wait_until(lambda: len(job.epochs()) > reached)
    logger.warning(
        "an epoch was complete %.1f s after a host was killed", time.monotonic() - killed
    )
    assert times_of(r"training on 1 worker\b", job) == 1

    cluster.kill("mlflow")
    cluster.start("host2")
    job.wait_until(lambda: times_of("MLflow does not answer, training goes on", job))
    cluster.start("mlflow")
    job.wait_until(lambda: times_of("training on 2 workers", job) == 2)
    assert job.wait() is JobStatus.SUCCEEDED, job.output()
    assert job.run().info.status == "FINISHED"
    for metric in ("val/exit1/top1", "train/loss", "epoch"):
        assert job.epochs(metric) == list(range(1, 46))
