"""How a job on a cluster is followed."""

import asyncio

import pytest
import requests
from ray.job_submission import JobStatus

from cluster import jobs
from cluster.jobs import JobError, follow

PATIENCE = 1.5


@pytest.fixture
def line(monkeypatch) -> list[int]:
    """A connection to a job: characters that it gives, a second each, and then none at all."""
    speaks = []

    async def stream(client, job_id, known, write) -> int:
        await asyncio.sleep(1.0 if speaks else 0.0)
        return speaks.pop() if speaks else 0

    def status(client, job_id):
        raise requests.ConnectionError("nobody answers")

    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", PATIENCE)
    monkeypatch.setattr(jobs, "_stream", stream)
    monkeypatch.setattr(jobs, "_status", status)
    return speaks


def test_patience_begins_with_the_last_word_of_a_job(line, monkeypatch):
    line += [5, 5, 5]  # for longer than the patience
    asked = []

    def status(client, job_id):
        asked.append(job_id)
        if len(asked) < 4:
            raise requests.ConnectionError("nobody answers")
        return JobStatus.SUCCEEDED

    monkeypatch.setattr(jobs, "_status", status)
    assert follow(None, "job", print) is JobStatus.SUCCEEDED  # pyright: ignore[reportArgumentType]


def test_a_cluster_that_stays_away_is_given_up(line):
    with pytest.raises(JobError, match=r"has not answered for 2 seconds .*--follow job"):
        follow(None, "job", print)  # pyright: ignore[reportArgumentType]
