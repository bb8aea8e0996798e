"""Training on several hosts while hosts, servers, head and job are lost."""

import logging
import re
import subprocess
import time
from pathlib import Path
from threading import Thread

import psutil
import pytest
from ray.job_submission import JobStatus

from cluster.local.network import can_isolate
from cluster.local.services import BUCKET
from tests.support.jobs import IMAGES, Job, check_copies, check_nothing_is_held
from tests.support.training import client, place_in, runs, training

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

logger = logging.getLogger(__name__)

ELASTIC = ("--cluster.num_workers=[1,2]", "--cluster.elastic_check_seconds=5")
ENDLESS = "--train.epochs=100000"
"""Number of epochs that no machine finishes before the test stops the training."""


def times_of(pattern, job):
    return len(re.findall(pattern, job.output()))


def place_after(words, job, number=0):
    """Return epochs and steps from a line of the log."""
    found = re.findall(rf"{words} after (\d+) epochs and (\d+) steps", job.output())
    epochs, steps = found[number]
    return int(epochs), int(steps)


def committed_step(job):
    """Return the step within its epoch of the latest checkpoint in S3."""
    client = job.cluster.s3()
    found = client.list_objects_v2(Bucket=BUCKET, Prefix=f"runs/{job.name}").get("Contents", [])
    states = [each["Key"] for each in found if each["Key"].endswith("manager_snapshot.json")]
    reached = [place_in(client.get_object(Bucket=BUCKET, Key=key)["Body"].read()) for key in states]
    client.close()
    return max(reached, default=(0, 0))[1]


def wait_for_more_epochs(job):
    reached = len(job.epochs())
    job.wait_until(lambda: len(job.epochs()) > reached)


def check_told_whole(job, num_epochs=None):
    """One MLflow run tells the whole story: every epoch, each once."""
    for metric in ("val/exit1/top1", "train/loss", "epoch"):
        known = job.epochs(metric)
        assert known == list(range(1, (num_epochs or len(known)) + 1))


def check_complete(job, num_epochs):
    assert job.wait() is JobStatus.SUCCEEDED, job.output()
    assert job.run().info.status == "FINISHED"
    check_told_whole(job, num_epochs)


def stop_and_check(job):
    job.stop()
    assert job.wait() is JobStatus.STOPPED
    assert job.run().info.status == "KILLED"
    check_told_whole(job)
    check_nothing_is_held(job.cluster)


def test_run_continues_without_a_lost_host_and_mlflow_and_regains_its_size(cluster, tmp_path):
    # Four checkpoints in an epoch of 85 steps; images in S3, of which each host makes a copy.
    job = Job(
        cluster, tmp_path, "elastic", ENDLESS, *ELASTIC, f"--data.prepared_dir={IMAGES}",
        "--train.batch_size=16", "--train.checkpoint_every_steps=20",
    )  # fmt: skip
    job.wait_until(lambda: job.epochs() and committed_step(job) == 20)
    known = times_of("resuming after", job)
    cluster.kill("host2", "mlflow")
    killed = time.monotonic()
    job.wait_until(lambda: times_of(r"training on 1 worker\b", job))
    logger.warning("trained again %.1f s after a host was killed", time.monotonic() - killed)
    assert time.monotonic() - killed < 180
    job.wait_until(lambda: times_of("resuming after", job) > known)
    assert place_after("resuming", job, known)[1] > 0
    job.wait_until(lambda: times_of("MLflow does not answer, training continues", job))
    cluster.start("host2", "mlflow")
    job.wait_until(lambda: times_of("training on 2 workers", job) == 2)
    job.wait_until(lambda: times_of("MLflow answers again", job))
    wait_for_more_epochs(job)
    stop_and_check(job)
    check_copies(cluster)


def test_next_submit_resumes_after_a_stopped_job_and_a_lost_head(cluster, tmp_path):
    # Ray takes 0.2 s for each report: five seconds, however fast training is.
    arguments = (tmp_path, "again", "--train.epochs=25", "--cluster.num_workers=2")
    stopped = Job(cluster, *arguments)
    stopped.wait_until(lambda: len(stopped.epochs()) >= 2)
    stopped.stop()
    assert stopped.wait() is JobStatus.STOPPED
    assert stopped.run().info.status == "KILLED"
    reached = len(stopped.epochs())
    beheaded = Job(cluster, *arguments)
    beheaded.wait_until(lambda: len(beheaded.epochs()) > reached)
    cluster.kill("head")
    assert beheaded.run().info.status == "RUNNING"  # nobody was left to say otherwise
    cluster.start("head")
    last = Job(cluster, *arguments)
    check_complete(last, 25)
    assert "epoch 1/25" not in last.output()


def interrupt_spot_instance(cluster):
    # EC2's notice reaches Ray within the poller's 5 s and the start of two Python processes.
    cluster.preempt("host2", 45.0)


def terminate_pod(cluster):
    """Send SIGTERM to the first process of a pod, as Kubernetes does."""
    [ray_start] = [
        process
        for process in cluster.processes("host2")
        if [Path(word).name for word in process.cmdline()[1:3]] == ["ray", "start"]
    ]
    ray_start.terminate()
    ray_start.wait(120)


@pytest.mark.parametrize("lose_host", [interrupt_spot_instance, terminate_pod])
def test_announced_loss_of_a_host_is_no_failure_and_no_step_is_repeated(
    cluster, tmp_path, lose_host
):
    job = Job(
        cluster,
        tmp_path,
        lose_host.__name__,
        ENDLESS,
        "--cluster.max_consecutive_failures=0",
        *ELASTIC,
    )
    job.wait_until(lambda: len(job.epochs()) >= 2)
    workers = [
        process
        for process in cluster.processes(*cluster.hosts)
        if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    assert {process.nice() for process in workers} == {psutil.Process().nice()}
    taken = Thread(target=lose_host, args=(cluster,))
    taken.start()
    job.wait_until(lambda: times_of(r"training on 1 worker\b", job))
    taken.join()
    wait_for_more_epochs(job)
    assert place_after("resuming", job) == place_after("about to be preempted: stopped", job)
    assert times_of("resuming after", job) == 1
    stop_and_check(job)


@pytest.mark.skipif(not can_isolate(), reason="needs root, to mount a small disk")
def test_disk_that_fills_up_during_training_is_named_with_its_setting(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True)
    try:
        with training(tmp_path, f"--cluster.storage_path={disk}", "--cluster.keep_checkpoints=99",
                      "--train.epochs=60") as process:  # fmt: skip
            assert process.wait(120) == 1
        last = process.output().splitlines()[-1]
        assert last.startswith("error: ")
        assert "No space left on device" in last
        assert f"free space in cluster.storage_path, {disk}, or" in last
        assert [run.info.status for run in runs(client(tmp_path))] == ["FAILED"]
    finally:
        subprocess.run(["umount", disk], check=True)
