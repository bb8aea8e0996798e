"""S3 server on this machine, its clients, and restarts."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster.local.network import ClusterError, free_ports
from cluster.local.services import S3_PORTS, S3User, remove_sockets, s3_command, write_s3_users

REGION = "us-east-1"
START_SECONDS = 60.0
"""Timeout for the start of a server."""


def s3_environment(endpoint: str, user: S3User) -> dict[str, str]:
    """Return the environment variables of a client."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": user.name,
        "AWS_SECRET_ACCESS_KEY": user.secret,
        "AWS_DEFAULT_REGION": REGION,
    }


def s3_client(endpoint: str, user: S3User, service: str = "s3") -> Any:
    """Return a boto3 client with short timeouts."""
    return boto3.client(
        service,
        endpoint_url=endpoint,
        aws_access_key_id=user.name,
        aws_secret_access_key=user.secret,
        region_name=REGION,
        config=Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 2}),
    )


def stores_objects(client: Any, bucket: str) -> bool:
    """Return whether a server stores objects, and create the bucket.

    A server accepts connections before it can write.
    """
    try:
        with suppress(
            client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists
        ):
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key="ready", Body=b"ready")
    except (BotoCoreError, ClientError):
        return False
    return True


@dataclass
class S3Server:
    """Process of an S3 server; its objects remain over a restart."""

    folder: Path
    """Folder of the objects, the users and the log."""
    users: Sequence[S3User]
    """Users of the server; the first one has all rights."""
    ip: str = "127.0.0.1"
    """IP address to listen on."""
    options: Sequence[str] = ()
    """Further options of SeaweedFS, which runs in `folder`."""
    _ports: dict[str, int] = field(default_factory=dict, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def endpoint(self) -> str:
        """URL of the server."""
        return f"http://{self.ip}:{self._ports['s3.port']}"

    @property
    def pid(self) -> int:
        """Process ID of the server."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def environment(self, user: S3User | None = None) -> dict[str, str]:
        """Return the environment variables of a client (default: first user)."""
        return s3_environment(self.endpoint, user or self.users[0])

    def client(self, user: S3User | None = None) -> Any:
        """Return a boto3 client (default: first user)."""
        return s3_client(self.endpoint, user or self.users[0])

    def start(self) -> None:
        """Start the server, or restart it on its ports.

        The method returns when the server stores objects.

        Raises:
            ClusterError: the server ended, or did not store objects in time.
        """
        assert not self.is_running(), "the server is running already"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._ports:
            self._ports = dict(zip(S3_PORTS, free_ports(self.ip, len(S3_PORTS)), strict=True))
        write_s3_users(self.folder, *self.users)
        here = Path()  # the path of a socket has at most 107 characters
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [*s3_command(here, here, self.ip, self._ports), *self.options],
                cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def is_running(self) -> bool:
        """Return whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill the server like a crash; SIGTERM takes more than ten seconds."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            remove_sockets(self._ports)

    def _wait_until_ready(self) -> None:
        client = self.client()
        deadline = time.monotonic() + START_SECONDS
        log = self.folder / "log.txt"
        try:
            while not stores_objects(client, "ready"):
                if not self.is_running():
                    raise ClusterError(f"SeaweedFS ended; see {log}:\n{log.read_text()[-2000:]}")
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"SeaweedFS stored no object within {START_SECONDS:g} s; see {log}"
                    )
                time.sleep(0.1)
        finally:
            client.close()


@contextmanager
def s3_server(folder: Path, *users: S3User, options: Sequence[str] = ()) -> Iterator[S3Server]:
    """Run an S3 server for the duration of the context."""
    server = S3Server(folder, users, options=options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
