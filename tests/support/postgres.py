"""Debian's PostgreSQL with its own folder, user and, as root, disk."""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2

from cluster.local.network import free_ports

START_SECONDS = 60.0


def binaries() -> Path | None:
    """Folder of Debian's newest PostgreSQL, which is on nobody's PATH."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


class Postgres:
    """PostgreSQL server with one database; for root, on its own disk."""

    def __init__(self, address: str, disk_bytes: int) -> None:
        self.address = address
        self.password = secrets.token_hex(16)
        [self.port] = free_ports(address, 1)
        # Where another user can go: pytest's folders are closed to others.
        self.folder = Path(tempfile.mkdtemp(prefix="ranet-pg-", dir="/tmp"))
        self._as_owner: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.has_own_disk = os.geteuid() == 0
        if self.has_own_disk:  # PostgreSQL does not run as root
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={disk_bytes}", "tmpfs", self.folder],
                check=True,
            )
            owner = pwd.getpwnam("postgres")
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
            self._as_owner = [
                "setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups",
            ]  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        """Return the URI for clients and for MLflow's server."""
        return {
            "PGHOST": self.address,
            "PGPORT": str(self.port),
            "PGDATABASE": "postgres",
            "PGUSER": "mlflow",
            "PGPASSWORD": self.password,
        }

    def start(self) -> None:
        programs = binaries()
        assert programs is not None, "the caller has looked"
        password = self.folder / "password"
        password.write_text(self.password)
        subprocess.run(
            [*self._as_owner, programs / "initdb", "--pgdata", self.folder / "data",
             "--username=mlflow", "--auth=scram-sha-256", f"--pwfile={password}",
             "--encoding=UTF8", "--no-sync", "--wal-segsize=1"],
            cwd=self.folder, capture_output=True, check=True,
        )  # fmt: skip
        with (self.folder / "log.txt").open("w") as log:
            self._process = subprocess.Popen(
                [*self._as_owner, programs / "postgres", "-D", self.folder / "data",
                 "-p", str(self.port), "-k", self.folder, "-c", f"listen_addresses={self.address}",
                 "-c", "fsync=off", "-c", "max_wal_size=4MB", "-c", "min_wal_size=2MB",
                 "-c", "log_min_error_statement=panic"],
                cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        # Accept connections from the network: hosts of a local cluster are on another subnet.
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {self.address}/24 scram-sha-256\n")
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.ask("SELECT pg_reload_conf()")
                return
            except psycopg2.OperationalError:
                assert self._process.poll() is None, (self.folder / "log.txt").read_text()
                assert time.monotonic() < deadline, (self.folder / "log.txt").read_text()
                time.sleep(0.1)

    def ask(self, statement: str) -> list[tuple]:
        connection = psycopg2.connect(
            host=self.address, port=self.port, dbname="postgres", user="mlflow",
            password=self.password, connect_timeout=5,
        )  # fmt: skip
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall()
        finally:
            connection.close()

    def dump(self) -> str:
        """All that it holds, as text."""
        programs = binaries()
        assert programs is not None, "the caller has looked"
        return subprocess.run(
            [programs / "pg_dump", "--inserts"],
            env={**os.environ, **self.environment}, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Leave no space on its disk."""
        filler = self.folder / "filler"
        with filler.open("wb") as file:
            while True:
                try:
                    os.write(file.fileno(), bytes(1 << 16))
                except OSError:
                    break
        try:
            yield
        finally:
            filler.unlink()

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        if self.has_own_disk:
            subprocess.run(["umount", self.folder], check=True)
        shutil.rmtree(self.folder)


@contextmanager
def postgres_server(address: str, disk_bytes: int = 200 << 20) -> Iterator[Postgres]:
    """Run PostgreSQL on an address of this machine."""
    server = Postgres(address, disk_bytes)
    try:
        server.start()
        yield server
    finally:
        server.close()
