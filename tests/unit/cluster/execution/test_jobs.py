"""Submission of Ray jobs, and following their logs."""

import asyncio
import shutil
import zipfile

import pytest
import requests
from ray.job_submission import JobStatus

from cluster.execution import jobs
from cluster.execution.jobs import JobError, check_public, follow
from cluster.execution.ray_internals import pack_code
from tests.unit.test_project import ROOT

TIMEOUT_SECONDS = 1.5


@pytest.fixture
def answers(monkeypatch) -> list[JobStatus | None]:
    """Responses to status queries, last one first; then the cluster is unreachable.

    None is an error of the connection. The log is streamed for longer than the timeout.
    """
    answers: list[JobStatus | None] = []

    async def stream(client, job_id, known, write) -> int:
        await asyncio.sleep(TIMEOUT_SECONDS + 0.5)
        return 5

    def status(client, job_id):
        if answers and (answer := answers.pop()) is not None:
            return answer
        raise requests.ConnectionError("unreachable")

    monkeypatch.setattr(jobs, "RETRY_TIMEOUT_SECONDS", TIMEOUT_SECONDS)
    monkeypatch.setattr(jobs, "_stream", stream)
    monkeypatch.setattr(jobs, "_status", status)
    return answers


def test_timeout_starts_at_the_last_log_line_of_a_job(answers):
    answers += [JobStatus.SUCCEEDED, None, JobStatus.RUNNING, None, JobStatus.RUNNING, None]
    assert follow(None, "job", print) is JobStatus.SUCCEEDED  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("before", [[], [JobStatus.RUNNING]])
def test_following_a_job_fails_after_the_timeout_of_an_unreachable_cluster(answers, before):
    answers += before
    with pytest.raises(JobError, match=r"has not answered for 2 seconds .*--follow job"):
        follow(None, "job", print)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("command", "environment", "source"),
    [
        ([], {"AWS_SECRET_ACCESS_KEY": "zq-planted"}, "variable AWS_SECRET_ACCESS_KEY"),
        ([], {"hf_token": "zq-planted"}, "variable hf_token"),
        ([], {"DATABASE_URL": "postgresql://ada:zq-planted@db/x"}, "variable DATABASE_URL"),
        ([], {"MLFLOW_TRACKING_URI": "https://ada:zq-planted@m/"}, "variable MLFLOW_TRACKING_URI"),
        (
            ["train.py", "--cluster.storage_path=s3://AKIA:zq-planted@team/runs"],
            {},
            "word 2 of the",
        ),
        (
            ["train.py", "--data.prepared_dir=s3://team/x?secret_key=zq-planted"],
            {},
            "word 2 of the",
        ),
        (["env", "AWS_SESSION_TOKEN=zq-planted", "python"], {}, "word 2 of the"),
        (["sh", "-c", "PGPASSWORD=zq-planted python x.py"], {}, "word 3 of the"),
    ],
)
def test_job_with_a_secret_is_rejected_without_repeating_the_secret(command, environment, source):
    with pytest.raises(JobError, match="nothing was sent") as caught:
        check_public(command, environment)
    assert str(caught.value).startswith(f"{source}")
    assert "planted" not in str(caught.value)


def test_job_without_secrets_is_accepted():
    command = ["python", "pipelines/train.py", "--config", "configs/digits.yaml",
               "--cluster.storage_path=s3://team/runs", "--train.optim.lr=0.1"]  # fmt: skip
    check_public(command, {"MLFLOW_TRACKING_URI": "https://mlflow.example.com", "OMP_NUM": "1"})


def test_code_package_excludes_files_with_secrets(tmp_path):
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "train.py").write_text("pass")
    for name in (
        ".env", ".env.local", "credentials", ".aws/config", ".netrc", ".pgpass", "team.pem",
        "id_rsa", "configs/id_ed25519", "node.key", ".mlflow/credentials",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("zq-planted")
    package = tmp_path.with_suffix(".zip")
    pack_code(tmp_path, package)
    with zipfile.ZipFile(package) as content:
        files = {name for name in content.namelist() if not name.endswith("/")}
    assert files == {".gitignore", ".rayignore", "pipelines/train.py"}
