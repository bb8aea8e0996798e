"""Local cluster on one machine: Ray hosts, S3 and MLflow servers.

As root, every member is a host of its own: a network namespace with an IP address on a bridge,
and its own process IDs and hostname. Otherwise members are plain processes on loopback. All
processes of a member carry a mark in their environment. The cluster finds and kills them by that
mark and by process ID, so no other process of the machine is affected.
"""

import contextlib
import ipaddress
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import psutil
import requests
from filelock import FileLock, Timeout

from cluster.local.network import (
    LOOPBACK,
    ClusterError,
    Network,
    can_isolate,
    free_ports,
    free_subnet,
    network_lock,
)
from cluster.local.processes import kill_marked, marked_processes
from cluster.local.s3_server import s3_client, s3_environment, stores_objects
from cluster.local.services import (
    BUCKET,
    S3_PORTS,
    S3User,
    mlflow_command,
    ray_head_command,
    ray_worker_command,
    remove_sockets,
    s3_command,
    with_spot_notices,
    write_s3_users,
)
from cluster.storage.files import atomic_write

logger = logging.getLogger(__name__)
START_SECONDS = 180.0
"""Timeout for the start of a member."""
_MARK = "RANET_CLUSTER_MEMBER"
_STATE = "cluster.json"
_USUAL_PORTS = {"s3.port": 8333, "mlflow": 5000, "gcs": 6379, "dashboard": 8265}


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """Members of a cluster, and their IP addresses.

    The members are `s3`, `mlflow`, `head`, `host1`, `host2` and so on.
    """

    folder: str
    """Folder for data of S3 and MLflow, logs and `cluster.json`."""
    token: str
    """Part of the mark of all processes and of the names of all interfaces."""
    num_hosts: int
    """Number of Ray nodes besides the head, which runs no workers."""
    cpus_per_host: int
    """CPUs per host, as Ray counts them."""
    subnet: str
    """Subnet of the members; a part of loopback for plain processes."""
    scratch: str
    """Folder with a short path, for sockets."""
    secret: str
    """Secret key of the S3 server's user."""
    ray_token: str
    """Token for access to Ray."""
    ports: Mapping[str, int]
    """Port of every service."""

    @classmethod
    def find(cls, folder: Path) -> "LocalCluster":
        """Read the description of the cluster that runs from `folder`.

        Raises:
            ClusterError: no cluster runs there, or another version of this program started it.
        """
        path = folder / _STATE
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            raise ClusterError(f"no cluster runs from {folder}; start one: make cluster") from None
        except TypeError as error:
            raise ClusterError(
                f"{path} describes a cluster of another version of this program ({error}): stop it "
                "with that version, or delete the file if it is no longer running"
            ) from error

    @property
    def members(self) -> tuple[str, ...]:
        """Names of all members."""
        return ("s3", "mlflow", "head", *self.hosts)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the Ray nodes that run workers."""
        return tuple(f"host{k + 1}" for k in range(self.num_hosts))

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a client: service URIs and access keys."""
        return {
            "RAY_API_SERVER_ADDRESS": self._url("head", "dashboard"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.ray_token,
            "MLFLOW_TRACKING_URI": self._url("mlflow", "mlflow"),
            **s3_environment(self._url("s3", "s3.port"), self._s3_user),
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def ray_headers(self) -> dict[str, str]:
        """HTTP headers that Ray's dashboard requires."""
        return {"Authorization": f"Bearer {self.ray_token}"}

    @property
    def node_list(self) -> Path:
        """File in which Ray's head lists all nodes for Prometheus."""
        return Path(self.scratch) / "head" / "prom_metrics_service_discovery.json"

    def s3(self) -> Any:
        """Return a boto3 client of the S3 server with short timeouts."""
        return s3_client(self._url("s3", "s3.port"), self._s3_user)

    def address(self, member: str) -> str:
        """Return the IP address of a member."""
        return str(ipaddress.ip_network(self.subnet)[2 + self.members.index(member)])

    def start(self, *members: str) -> None:
        """Start members and wait until they are ready.

        A new head restarts all hosts.

        Raises:
            ClusterError: a member is running already, or did not answer in time.
        """
        for member in members:
            if self.processes(member):
                raise ClusterError(f"{member} is running already")
        if "head" in members:
            self.kill(*self.hosts)
            members = tuple(dict.fromkeys((*members, *self.hosts)))
        for wave in (set(members) - set(self.hosts), set(members) & set(self.hosts)):
            before = self.living_nodes() if wave & set(self.hosts) else {}
            started = {member: self._spawn(member) for member in self.members if member in wave}
            for member, process in started.items():
                self._wait_for(member, process, before.get(member))

    def kill(self, *members: str) -> None:
        """Kill members and all their processes."""
        kill_marked(_MARK, *self._marks(members))

    def pause(self, *members: str) -> None:
        """Pause members: connections stay open without an answer."""
        self._signal(members, signal.SIGSTOP)

    def resume(self, *members: str) -> None:
        """Resume paused members."""
        self._signal(members, signal.SIGCONT)

    def preempt(self, host: str, seconds: float) -> None:
        """Preempt a host like a spot instance: notice first, then kill.

        The host's metadata service shows the notice; the kill follows after `seconds`.
        """
        if host not in self.living_nodes():
            raise ClusterError(f"{host} is not a live Ray node")
        time_of_loss = datetime.now(UTC) + timedelta(seconds=seconds)
        notice = {"action": "terminate", "time": f"{time_of_loss:%Y-%m-%dT%H:%M:%SZ}"}
        with atomic_write(self._notice(host)) as part:
            part.write_text(json.dumps(notice))
        time.sleep(seconds)
        self.kill(host)
        self._notice(host).unlink()

    def _notice(self, host: str) -> Path:
        return Path(self.scratch) / f"{host}-spot-notice.json"

    def processes(self, *members: str) -> list[psutil.Process]:
        """Return the live processes of some members."""
        return marked_processes(_MARK, *self._marks(members))

    def close(self) -> None:
        """Kill all members and remove their network and sockets; their data stay."""
        self.kill(*self.members)
        if self._network is not None:
            self._network.remove()
        remove_sockets(self.ports)
        shutil.rmtree(self.scratch, ignore_errors=True)
        (Path(self.folder) / _STATE).unlink(missing_ok=True)

    @property
    def _s3_user(self) -> S3User:
        return S3User(BUCKET, self.secret)

    @property
    def _network(self) -> Network | None:
        if self.subnet == LOOPBACK:
            return None
        addresses = {member: self.address(member) for member in self.members}
        return Network(self.token, self.subnet, addresses, Path(self.scratch))

    def _marks(self, members: Sequence[str]) -> list[str]:
        return [f"{self.token}/{member}" for member in members]

    def _url(self, member: str, service: str) -> str:
        return f"http://{self.address(member)}:{self.ports[service]}"

    def create(self) -> None:
        """Create folders, S3 users and the network; no member runs yet."""
        for part in ("s3", "logs"):
            (Path(self.folder) / part).mkdir(parents=True, exist_ok=True)
        write_s3_users(Path(self.scratch), self._s3_user)
        if self._network is not None:
            self._network.create()

    def _spawn(self, member: str) -> subprocess.Popen[bytes]:
        (Path(self.scratch) / member).mkdir(exist_ok=True)
        home = Path(self.folder) / "home" / member
        home.mkdir(parents=True, exist_ok=True)
        command = self._command(member)
        if self._network is not None:
            command = self._network.isolate(member, command)
        environment = {
            **clean_environment(),
            **self.environment,
            # On hosts of their own, workers do not compete with the processes of other members.
            "RAY_worker_niceness": "0",
            "HOME": str(home),  # a disk of its own, for prepared images
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its processes outlive the server
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": self._url("mlflow", "mlflow"),  # of its own pages
            _MARK: f"{self.token}/{member}",
        }
        with (Path(self.folder) / "logs" / f"{member}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, cwd=self.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        Thread(target=process.wait, daemon=True).start()  # reaps the process whenever it ends
        return process

    def _command(self, member: str) -> list[str]:
        address, scratch = self.address(member), Path(self.scratch)
        if member == "s3":
            return s3_command(Path(self.folder) / "s3", scratch, address, self.ports)
        if member == "mlflow":
            return mlflow_command(Path(self.folder), address, self.ports["mlflow"])
        if member == "head":
            return ray_head_command(address, scratch, self.ports)
        head = f"{self.address('head')}:{self.ports['gcs']}"
        return with_spot_notices(
            ray_worker_command(member, address, scratch, num_cpus=self.cpus_per_host, head=head),
            address=address, port=self.ports["metadata"], notice=self._notice(member), head=head,
        )  # fmt: skip

    def _wait_for(self, member: str, process: subprocess.Popen[bytes], old: str | None) -> None:
        """Wait until a member is ready.

        A Ray node is ready when its ID differs from `old`, the ID of the member's dead node.
        """
        deadline = time.monotonic() + START_SECONDS
        while not self._answers(member, old):
            log = Path(self.folder) / "logs" / f"{member}.log"
            if process.poll() is not None:
                raise ClusterError(
                    f"{member} ended with status {process.returncode}; see {log}:\n{tail(log)}"
                )
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{member} did not answer within {START_SECONDS:g} s; see {log}:\n{tail(log)}"
                )
            time.sleep(0.2)

    def _answers(self, member: str, old: str | None) -> bool:
        try:
            if member == "s3":
                return stores_objects(self.s3(), BUCKET)
            if member == "mlflow":
                requests.get(f"{self._url('mlflow', 'mlflow')}/health", timeout=5)
            else:
                return self.living_nodes().get(member, old) != old
        except requests.RequestException:
            return False
        return True

    def living_nodes(self) -> dict[str, str]:
        """Return the IDs of Ray's live nodes by member.

        Each node has a resource that is named after its member.
        """
        living = [node for node in self.ray_state("nodes") if node["state"] == "ALIVE"]
        living.sort(key=lambda node: node["start_time_ms"])
        return {
            member: node["node_id"]
            for node in living
            for member in self.members
            if member in node["resources_total"]
        }

    def ray_state(self, kind: Literal["nodes", "placement_groups"]) -> list[dict[str, Any]]:
        """Return nodes or placement groups from the state API of Ray."""
        answer = requests.get(
            f"{self._url('head', 'dashboard')}/api/v0/{kind}",
            params={"detail": "true"}, headers=self.ray_headers, timeout=20,
        )  # fmt: skip
        answer.raise_for_status()
        return answer.json()["data"]["result"]["result"]

    def _signal(self, members: Sequence[str], number: signal.Signals) -> None:
        for process in self.processes(*members):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@contextmanager
def local_cluster(
    folder: Path,
    *,
    num_hosts: int = 2,
    cpus_per_host: int = 1,
    isolated: bool = True,
    fresh: bool = False,
) -> Iterator[LocalCluster]:
    """Run a cluster for the duration of the context.

    Members that a dead owner of `folder` left are killed first.

    Args:
        folder: data of the cluster; the data of S3 and MLflow are kept.
        num_hosts: number of Ray nodes besides the head.
        cpus_per_host: CPUs per host, as Ray counts them.
        isolated: give members network namespaces where possible; otherwise the members are
        processes
            on loopback.
        fresh: start with empty S3 and MLflow servers, and empty disks.

    Raises:
        ClusterError: another process runs a cluster from this folder, or a member failed to start.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _owned(folder):
        if (folder / _STATE).exists():
            logger.warning("killing the members that a previous cluster left in %s", folder)
            LocalCluster.find(folder).close()
        if fresh:
            shutil.rmtree(folder / "s3", ignore_errors=True)
            shutil.rmtree(folder / "home", ignore_errors=True)
            for file in folder.glob("mlflow.db*"):
                file.unlink()
        cluster = create_cluster(folder, num_hosts, cpus_per_host, isolated and can_isolate())
        try:
            cluster.start("s3", "mlflow", "head")
            yield cluster
        finally:
            cluster.close()


def create_cluster(
    folder: Path, num_hosts: int, cpus_per_host: int, isolated: bool
) -> LocalCluster:
    """Create a cluster with its network; no member runs yet."""
    names = (*S3_PORTS, *_USUAL_PORTS, "client", "metadata")
    # Clusters that are created at the same time need different subnets.
    with network_lock() if isolated else contextlib.nullcontext():
        cluster = LocalCluster(
            folder=str(folder),
            token=secrets.token_hex(2),
            num_hosts=num_hosts,
            cpus_per_host=cpus_per_host,
            subnet=free_subnet() if isolated else LOOPBACK,
            scratch=tempfile.mkdtemp(prefix="ranet-", dir="/tmp"),
            secret=secrets.token_hex(16),
            ray_token=secrets.token_hex(16),
            ports=dict(zip(names, free_ports("127.0.0.1", len(names)), strict=True))
            | (_USUAL_PORTS if isolated else {}),
        )
        # The file contains the keys of Ray and of the S3 server.
        with atomic_write(folder / _STATE, mode=0o600) as part:
            part.write_text(json.dumps(asdict(cluster), indent=2))
        try:
            cluster.create()
        except BaseException:
            cluster.close()
            raise
    return cluster


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold the lock that admits one cluster per folder."""
    lock = FileLock(folder / "owner.lock", fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ClusterError(f"a cluster is running from {folder}; stop it first") from None
    try:
        yield
    finally:
        lock.release()


def clean_environment() -> dict[str, str]:
    """Return the environment without variables of Ray, MLflow and AWS."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("RAY_", "MLFLOW_", "AWS_"))
    }


def tail(log: Path) -> str:
    """Return the last lines of a log file."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
