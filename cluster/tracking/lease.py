"""Lease of a run: its driver process, and the driver's last heartbeat."""

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

import psutil
from mlflow.entities import Metric, Run

from cluster.tracking.mlflow_internals import SystemMetrics
from cluster.tracking.record import TrackedRun, now_ms

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20.0
"""Interval between two heartbeats of a run's driver."""
STALE_SECONDS = 90.0
"""Age of the last heartbeat after which a driver on another host counts as dead."""
LEASE_TAG = "ranet.lease"
"""MLflow tag that holds the lease as JSON."""


@dataclass(frozen=True)
class Lease:
    """Driver process of a run, and the time of its last heartbeat."""

    host: str
    pid: int
    started: int
    token: str
    last_heartbeat: float

    @classmethod
    def of_this_process(cls) -> "Lease":
        """Create a lease for this process."""
        started = process_start(os.getpid())
        assert started is not None
        return cls(_host(), os.getpid(), started, uuid.uuid4().hex, time.time())

    @classmethod
    def of_run(cls, run: Run) -> "Lease | None":
        """Read the lease of a run, None for a run without one."""
        text = run.data.tags.get(LEASE_TAG)
        return None if text is None else cls(**json.loads(text))

    def to_json(self) -> str:
        """Return the lease as JSON, with the current time as heartbeat."""
        return json.dumps(asdict(replace(self, last_heartbeat=time.time())))

    def is_alive(self) -> bool:
        """Return whether the driver is alive.

        A driver on this host is looked up by process ID and start time. A driver on another host
        counts as alive while its last heartbeat is younger than `STALE_SECONDS`.
        """
        if self.host == _host():
            return process_start(self.pid) == self.started
        return time.time() - self.last_heartbeat < STALE_SECONDS


class LeaseRenewal(Thread):
    """Thread that renews a run's lease.

    The thread interrupts the process if another driver has taken over the run.
    """

    def __init__(self, record: TrackedRun, lease: Lease) -> None:
        super().__init__(name="lease-renewal", daemon=True)
        self.leaving = Event()
        self.lost = Event()
        self._record = record
        self._lease = lease
        self._in_main = current_thread() is main_thread()

    def run(self) -> None:
        """Renew the lease periodically, until it is lost or `leaving` is set."""
        client = self._record.client
        # In a thread of its own: a measurement may hang, and the lease must be renewed.
        Thread(target=self._log_machine, name="machine-metrics", daemon=True).start()
        while not self.leaving.wait(HEARTBEAT_SECONDS):
            try:
                run = client.get_run(self._record.run_id)
                holder = Lease.of_run(run)
                if holder is not None and holder.token != self._lease.token:
                    break
                client.set_tag(run.info.run_id, LEASE_TAG, self._lease.to_json())
                if run.info.status != "RUNNING":  # another driver considered this one dead
                    client.update_run(run.info.run_id, status="RUNNING")
            except Exception as error:
                logger.debug("the heartbeat of the run failed: %s", error)
        else:
            return
        self.lost.set()
        logger.error("another driver has taken over MLflow run %s", self._record.run_id)
        if self._in_main:
            interrupt_main()

    def _log_machine(self) -> None:
        """Log the machine's load as system metrics periodically."""
        machine, client = SystemMetrics(), self._record.client
        while not (self.leaving.wait(HEARTBEAT_SECONDS) or self.lost.is_set()):
            values, now = machine.collect(), now_ms()
            try:
                run = client.get_run(self._record.run_id)
                step = (now - run.info.start_time) // 1000  # since the first invocation of the run
                metrics = [
                    Metric(f"system/{key}", value, now, step) for key, value in values.items()
                ]
                client.log_batch(run.info.run_id, metrics=metrics)
            except Exception as error:
                logger.debug("the metrics of the machine were not logged: %s", error)


def _host() -> str:
    """Return the host name and the boot ID.

    Process IDs are unique only within one boot.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()}/{boot}"


def process_start(pid: int) -> int | None:
    """Return a process's start in hundredths of a second after boot.

    The time since boot is not affected by changes of the clock, which shift psutil's start times
    and boot time alike.

    Returns:
        None where the process is gone or a zombie.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return round(100 * (process.create_time() - psutil.boot_time()))
    except psutil.Error:
        return None
