"""Submission of jobs: the code package, the log and the final status."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.execution.jobs import JobError, check_code
from cluster.local.services import BUCKET
from tests.support.planted_secrets import files, findings
from tests.support.training import CONFIG, PROJECT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SUBMIT = [sys.executable, str(PROJECT / "pipelines" / "submit.py")]


def environment(cluster):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    return {**inherited, **cluster.environment}


def submit(cluster, folder, *arguments, **options):
    return subprocess.run(
        [*SUBMIT, *arguments], cwd=folder, env=environment(cluster), capture_output=True, text=True,
        timeout=200, check=False, **options,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A small project, so that tests of following need not send ours."""
    (tmp_path / "job.py").write_text(
        "import sys, time\n"
        "print('begun', flush=True)\n"
        "time.sleep(float(sys.argv[1]))\n"
        "print('ended', flush=True)\n"
        "sys.exit(int(sys.argv[2]))\n"
    )
    return tmp_path


def test_only_code_is_packaged_and_large_data_files_are_rejected_by_name(tmp_path):
    assert check_code(PROJECT) < 2_000_000
    (tmp_path / "train.py").write_text("pass")
    (tmp_path / "images.bin").write_bytes(os.urandom(3_000_000))
    (tmp_path / "ignored.bin").write_bytes(os.urandom(3_000_000))
    (tmp_path / ".rayignore").write_text("ignored.bin\n")
    assert 3_000_000 < check_code(tmp_path) < 3_100_000
    with pytest.raises(
        JobError, match=r"is 3.0 MB, above the limit of 1 MB; .*: images.bin 3.0 MB"
    ):
        check_code(tmp_path, limit=1_000_000)


def test_submit_exits_with_the_status_of_the_job(cluster, folder):
    good = submit(cluster, folder, "--", "python", "job.py", "0", "0")
    assert (good.returncode, good.stdout.count("ended")) == (0, 1), good.stderr
    assert "MB of code to upload" in good.stderr
    bad = submit(cluster, folder, "--", "python", "job.py", "0", "3")
    assert bad.returncode == 1
    assert "FAILED" in bad.stderr


def test_detached_job_can_be_followed_and_a_stopped_job_is_no_success(cluster, folder):
    detached = submit(cluster, folder, "--detach", "--", "python", "job.py", "600", "0")
    assert detached.returncode == 0, detached.stderr
    [job] = re.findall(r"--follow (\S+)", detached.stderr)
    with following(cluster, folder, job) as left:
        left.send_signal(signal.SIGINT)
        _, errors = left.communicate(timeout=60)
        assert left.returncode == 130
        assert "the job continues" in errors
    with following(cluster, folder, job) as again:
        stop = [Path(sys.executable).with_name("ray"), "job", "stop", "--no-wait", job]
        subprocess.run(stop, env=environment(cluster), check=True, capture_output=True, timeout=60)
        output, errors = again.communicate(timeout=100)
    assert again.returncode == 130, errors
    assert "STOPPED" in errors
    assert "ended" not in output


def tokens_in_logs_of_head(cluster) -> list[str]:
    """Return the lines of Ray's logs that contain its token."""
    logs = files(Path(cluster.scratch) / "head", Path(cluster.folder) / "logs")
    return findings([cluster.ray_token], logs, ("dashboard.log", "dashboard_JobHead.log"))


def test_follower_of_a_job_that_was_lost_with_the_head_is_told_to_submit_again(cluster, folder):
    detached = submit(cluster, folder, "--detach", "--", "python", "job.py", "600", "0")
    [job] = re.findall(r"--follow (\S+)", detached.stderr)
    with following(cluster, folder, job) as left:
        cluster.kill("head")
        cluster.start("head")
        _, errors = left.communicate(timeout=100)
    assert left.returncode == 1
    assert f"the head of the cluster was restarted and lost job {job}; submit the same" in errors
    assert not tokens_in_logs_of_head(cluster)


@contextmanager
def following(cluster, folder, job):
    """Follow a job that has begun, from where it is now."""
    process = subprocess.Popen(
        [*SUBMIT, "--follow", job], cwd=folder, env=environment(cluster), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    assert process.stderr
    try:
        while "begun" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_submitted_dry_run_checks_the_cluster(cluster, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    done = submit(
        cluster, PROJECT, "--", "python", "pipelines/train.py", "--config", str(config),
        f"--cluster.storage_path=s3://{BUCKET}/runs", f"--data.prepared_dir={tmp_path}/digits",
        "--cluster.num_workers=3", "--dry-run",
    )  # fmt: skip
    assert done.returncode == 1
    [sentence] = [line for line in done.stdout.splitlines() if line.startswith("MISSING")]
    assert "cluster.num_workers requests 3 workers of 1 CPUs, but the cluster at" in sentence
    assert "has capacity for 2" in sentence


def test_secret_in_the_environment_missing_job_token_or_cluster_is_reported(cluster, folder):
    shown = submit(cluster, folder, "--env", "AWS_SECRET_ACCESS_KEY", "--", "python", "job.py")
    assert shown.returncode == 2
    assert "the Ray dashboard shows the command and the" in shown.stderr
    assert "error: variable AWS_SECRET_ACCESS_KEY looks like a secret" in shown.stderr
    unset = submit(cluster, folder, "--env", "NOT_THERE", "--", "python", "job.py")
    assert unset.returncode == 2
    assert "--env NOT_THERE: no such variable in this environment" in unset.stderr
    unsent = {**environment(cluster), "MLFLOW_TRACKING_URI": "http://ada:zq@127.0.0.1:9"}
    missing = subprocess.run([*SUBMIT, "--follow", "raysubmit_none"], env=unsent,
                             capture_output=True, text=True, timeout=60)  # fmt: skip
    assert missing.returncode == 1
    assert "no job raysubmit_none on this cluster" in missing.stderr
    assert not tokens_in_logs_of_head(cluster)
    for token in ({}, {"RAY_AUTH_TOKEN": "0" * 32}):
        others = {k: v for k, v in environment(cluster).items() if k != "RAY_AUTH_TOKEN"}
        anonymous = subprocess.run(
            [*SUBMIT, "--", "python", "job.py", "0", "0"], cwd=folder, env={**others, **token},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert anonymous.returncode == 1
        assert "error: " in anonymous.stderr
        assert "token" in anonymous.stderr.splitlines()[-1], anonymous.stderr
    nowhere = {**environment(cluster), "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    began = time.monotonic()
    away = subprocess.run([*SUBMIT, "--follow", "x"], env=nowhere, capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert away.returncode == 1
    assert "no cluster answers there" in away.stderr
    assert time.monotonic() - began < 40
