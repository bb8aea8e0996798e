"""The lease of a run: which process drives it."""

import json
import logging
import os
import socket
import time
import uuid
from _thread import interrupt_main
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread

from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.time import get_current_time_millis

from cluster.tracking.record import TrackedRun

logger = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 20.0
"""Time between two signs of life of a run's driver."""
STALE_SECONDS = 90.0
"""A driver on another host that gave no sign of life for so long counts as dead."""
LEASE_TAG = "ranet.lease"


@dataclass(frozen=True)
class Lease:
    """Which process drives a run, and when it last gave a sign of life."""

    host: str
    pid: int
    started: int
    token: str
    beat: float

    @classmethod
    def of_this_process(cls) -> "Lease":
        """Create a lease that this process holds."""
        started = process_start(os.getpid())
        assert started is not None
        return cls(_host(), os.getpid(), started, uuid.uuid4().hex, time.time())

    @classmethod
    def of_run(cls, run: Run) -> "Lease | None":
        """Return the lease that a run carries, if any."""
        text = run.data.tags.get(LEASE_TAG)
        return None if text is None else cls(**json.loads(text))

    def text(self) -> str:
        """Return the lease as JSON, with the current time as heartbeat."""
        return json.dumps(asdict(replace(self, beat=time.time())))

    def is_alive(self) -> bool:
        """Return whether the process that holds the lease is alive."""
        if self.host == _host():
            return process_start(self.pid) == self.started
        return time.time() - self.beat < STALE_SECONDS


class LeaseRenewal(Thread):
    """Gives signs of life, and stops the process where another driver has taken the run."""

    def __init__(self, record: TrackedRun, lease: Lease) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.leaving = Event()
        self.lost = Event()
        self._record = record
        self._lease = lease
        self._in_main = current_thread() is main_thread()

    def run(self) -> None:
        """Renew the lease until the run ends or another driver takes it over."""
        client = self._record.client
        machine = SystemMetricsMonitor(self._record.run_id, tracking_uri=self._record.uri)
        while not self.leaving.wait(HEARTBEAT_SECONDS):
            try:
                run = client.get_run(self._record.run_id)
                holder = Lease.of_run(run)
                if holder is not None and holder.token != self._lease.token:
                    break
                client.set_tag(run.info.run_id, LEASE_TAG, self._lease.text())
                if run.info.status != "RUNNING":  # a start of another run thought us dead
                    client.update_run(run.info.run_id, status="RUNNING")
                _log_machine(client, run, machine)
            except Exception as error:
                logger.debug("no sign of life could be given: %s", error)
        else:
            return
        self.lost.set()
        logger.error("another driver has taken over MLflow run %s", self._record.run_id)
        if self._in_main:
            interrupt_main()


def _log_machine(client: MlflowClient, run: Run, machine: SystemMetricsMonitor) -> None:
    """Log how busy this machine is, under MLflow's own names; its thread ends with an outage."""
    machine.collect_metrics()
    now = get_current_time_millis()
    step = (now - run.info.start_time) // 1000  # so that a resumed run goes on counting
    values = machine.aggregate_metrics()
    for monitor in machine.monitors:
        monitor.clear_metrics()
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(f"system/{key}", value, now, step) for key, value in values.items()],
    )


def _host() -> str:
    """Name of this machine since it was last started: process ids mean nothing beyond it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}"


def process_start(pid: int) -> int | None:
    """Return when a process started, in clock ticks; none where it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
