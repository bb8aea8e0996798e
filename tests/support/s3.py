"""A real S3 server, SeaweedFS, on an address of this machine; tests may kill and restart it."""

import base64
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster.local.network import free_ports
from cluster.local.services import S3_PORTS, remove_sockets, s3_command

REGION = "us-east-1"
START_SECONDS = 60.0


@dataclass(frozen=True)
class User:
    """Who may do what: `Admin`, or actions such as `Read:bucket` and `List:bucket`."""

    name: str
    actions: tuple[str, ...] = ("Admin",)

    @property
    def secret(self) -> str:
        return f"secret-of-{self.name}"


ADMIN = User("admin")
TRAINER = "arn:aws:iam::role/trainer"
SESSIONS = {
    "sts": {
        "issuer": "tests",
        "signingKey": base64.b64encode(b"0123456789abcdef" * 2).decode(),
        "tokenDuration": "1h",
        "maxSessionLength": "1h",
    },
    "policies": [
        {
            "name": "all-objects",
            "document": {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]}],
            },
        }
    ],
    "roles": [
        {
            "roleName": "trainer",
            "roleArn": TRAINER,
            "attachedPolicies": ["all-objects"],
            "trustPolicy": {
                "Version": "2012-10-17",
                "Statement": [
                    {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": ["sts:AssumeRole"]}
                ],
            },
        }
    ],
}
"""A role that users may take on for an hour."""


@dataclass
class S3Server:
    """One process that keeps its objects in `folder`, also over a kill and a new start."""

    folder: Path
    ip: str = "127.0.0.1"
    users: Sequence[User] = (ADMIN,)
    _ports: dict[str, int] = field(default_factory=dict, init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def endpoint(self) -> str:
        return f"http://{self.ip}:{self._ports['s3.port']}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def environment(self, user: User = ADMIN) -> dict[str, str]:
        """What boto3, pyarrow, Ray and MLflow need to find the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": user.name,
            "AWS_SECRET_ACCESS_KEY": user.secret,
            "AWS_DEFAULT_REGION": REGION,
        }

    def client(self, user: User = ADMIN) -> Any:
        """A boto3 client that gives up after seconds."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=user.name,
            aws_secret_access_key=user.secret,
            region_name=REGION,
            config=Config(connect_timeout=2, read_timeout=30, retries={"total_max_attempts": 2}),
        )

    def environment_of_role(self) -> dict[str, str]:
        """The same with credentials of an hour, as a user signed in to AWS has them."""
        client = boto3.client(
            "sts",
            endpoint_url=self.endpoint,
            aws_access_key_id=ADMIN.name,
            aws_secret_access_key=ADMIN.secret,
            region_name=REGION,
        )
        session = client.assume_role(RoleArn=TRAINER, RoleSessionName="tests")["Credentials"]
        client.close()
        return self.environment() | {
            "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
            "AWS_SESSION_TOKEN": session["SessionToken"],
        }

    def start(self) -> None:
        """Start, on the ports of before where there were some, and wait until it stores objects."""
        assert not self.is_running(), "the server runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._ports:
            self._ports = dict(zip(S3_PORTS, free_ports(self.ip, len(S3_PORTS)), strict=True))
        identities = [
            {
                "name": user.name,
                "credentials": [{"accessKey": user.name, "secretKey": user.secret}],
                "actions": list(user.actions),
            }
            for user in self.users
        ]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))
        (self.folder / "sessions.json").write_text(json.dumps(SESSIONS))
        here = Path()  # a socket's whole path may have no more than 107 letters
        command = s3_command(here, here, self.ip, self._ports)
        command += ["-s3.iam.config=sessions.json"]
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """End it at once, as a crash would; SIGTERM takes more than ten seconds."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            remove_sockets(self._ports)

    def _wait_until_ready(self) -> None:
        client = self.client()
        deadline = time.monotonic() + START_SECONDS
        try:
            while True:
                try:
                    with suppress(
                        client.exceptions.BucketAlreadyOwnedByYou,
                        client.exceptions.BucketAlreadyExists,
                    ):
                        client.create_bucket(Bucket="ready")
                    client.put_object(Bucket="ready", Key="ready", Body=b"ready")
                    return
                except (BotoCoreError, ClientError) as error:
                    log = self.folder / "log.txt"
                    assert self.is_running(), f"SeaweedFS ended: {log.read_text()[-2000:]}"
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"SeaweedFS does not answer; see {log}") from error
                    time.sleep(0.1)
        finally:
            client.close()


class Line:
    """A slow line to the server, which counts what comes through it.

    Its rate is that of all connections together, or of each where it is not `shared`.
    """

    def __init__(self, server: S3Server, bytes_per_second: float, *, shared: bool = True) -> None:
        self.shared = shared
        host, port = server.endpoint.removeprefix("http://").split(":")
        self.server = (host, int(port))
        self.bytes_per_second = bytes_per_second
        self.received = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self.server) as server:
            upward = threading.Thread(target=self._copy, args=(client, server), daemon=True)
            upward.start()
            self._copy(server, client, counted=True)

    def _copy(self, source: socket.socket, target: socket.socket, counted: bool = False) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if counted:
                    seconds = len(data) / self.bytes_per_second
                    with self._lock:
                        self.received += len(data)
                        time.sleep(seconds * self.shared)
                    time.sleep(seconds * (not self.shared))
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


@contextmanager
def s3_server(
    folder: Path, *, ip: str = "127.0.0.1", users: Sequence[User] = (ADMIN,)
) -> Iterator[S3Server]:
    """Start a server that keeps its objects in `folder`, and kill it at the end."""
    server = S3Server(folder, ip, users)
    server.start()
    try:
        yield server
    finally:
        server.kill()
