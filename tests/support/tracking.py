"""MLflow runs for tests, also as left by another process."""

import json
import subprocess
from dataclasses import asdict, replace

from mlflow import MlflowClient

from cluster.tracking.lease import LEASE_TAG, Lease, process_start
from cluster.tracking.record import TrackedRun
from cluster.tracking.runs import open_run

SETTINGS = {"model.scales": "[1, 2, 3]", "train.optim.lr": "0.1"}


def begin(name="digits", settings=SETTINGS, new_attempt=False, parameters=None):
    return open_run(
        name,
        settings=settings,
        parameters=parameters or {},
        tags={},
        config_text=f"name: {name}\n",
        new_attempt=new_attempt,
    )


def status(client: MlflowClient, record: TrackedRun) -> str:
    return client.get_run(record.run_id).info.status


def hand_over(client: MlflowClient, process: subprocess.Popen[bytes], **changes) -> TrackedRun:
    """Open a run and leave it as if another process drove it."""
    with begin() as record:
        pass
    lease = Lease.of_this_process()
    started = process_start(process.pid)
    lease = replace(lease, pid=process.pid, started=started, **changes)
    client.set_tag(record.run_id, LEASE_TAG, json.dumps(asdict(lease)))
    client.update_run(record.run_id, status="RUNNING")
    return record
