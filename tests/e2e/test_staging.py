"""Copies of S3 objects on a node's disk, also after failures."""

import hashlib
import logging
import multiprocessing
import os
import pickle
import random
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import requests

from cluster.local.network import free_ports
from cluster.local.s3_server import S3Server
from cluster.local.throttled_proxy import ThrottledProxy
from cluster.storage.cache import Cache, staged
from cluster.storage.download import PART_BYTES, RemoteFile
from cluster.storage.s3 import ObjectStore
from pipelines.data.preparation.prepare import prepare
from tests.support.image_files import folder_config, image_folder
from tests.support.s3 import make_user, s3_server

pytestmark = pytest.mark.e2e

SIZE = 6 * PART_BYTES + 12_345
spawn = multiprocessing.get_context("spawn")


@contextmanager
def slow_line(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, megabytes_per_second: float
) -> Iterator[ThrottledProxy]:
    line = ThrottledProxy(server.endpoint, megabytes_per_second * 1e6)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.endpoint)
    try:
        yield line
    finally:
        line.close()
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)


@pytest.fixture
def content() -> bytes:
    return random.Random(0).randbytes(SIZE)


@pytest.fixture
def remote(bucket, content) -> RemoteFile:
    address = f"s3://{bucket}/images/train.beton"
    with ObjectStore() as store:
        store.write(address, content)
    return RemoteFile(address, len(content), hashlib.sha256(content).hexdigest())


def stage(files: list[RemoteFile], cache: Cache, **arguments) -> None:
    with staged(files, cache, **arguments):
        pass


def stage_and_tell(remote: RemoteFile, folder: Path, answers) -> None:
    """Stage in a process of its own."""
    with staged([remote], Cache(folder)) as copies:
        answers.put(str(copies))


def start_staging(remote: RemoteFile, folder: Path):
    answers = spawn.Queue()
    process = spawn.Process(target=stage_and_tell, args=(remote, folder, answers))
    process.start()
    return process, answers


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def recorded_parts(folder: Path) -> int:
    return sum(
        len(path.read_text().split("\n")[1:-1]) for path in folder.glob("*/train.beton.parts")
    )


def test_copy_equals_the_object_and_the_next_run_needs_no_s3(s3, remote, content, tmp_path):
    with staged([remote], Cache(tmp_path)) as copies:
        assert (copies / "train.beton").read_bytes() == content
        assert [path.name for path in copies.iterdir()] == ["train.beton"]
    s3.kill()
    began = time.monotonic()
    with staged([remote], Cache(tmp_path)) as again:
        assert again == copies
    assert time.monotonic() - began < 1


@pytest.fixture
def exporter(ray_folder: str) -> Iterator[str]:
    """URL at which a local Ray exports its metrics."""
    [port] = free_ports("127.0.0.1", 1)
    ray.init(
        "local", num_cpus=1, include_dashboard=False, object_store_memory=100 << 20,
        _temp_dir=ray_folder, _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 1000},  # sooner than a person needs
    )  # fmt: skip
    yield f"http://127.0.0.1:{port}/metrics"
    ray.shutdown()


def test_downloaded_bytes_are_exported_to_prometheus(remote, tmp_path, exporter):
    second = variant(remote, 2)

    def exported() -> list[float]:
        try:
            text = requests.get(exporter, timeout=10).text
        except requests.ConnectionError:  # it is starting
            return []
        found = re.findall(r"^ray_ranet_staged_bytes_total\{.*\} (\S+)$", text, re.MULTILINE)
        return [float(each) for each in found]

    stage([remote, second], Cache(tmp_path))
    stage([remote, second], Cache(tmp_path))  # nothing is loaded again
    wait_for(lambda: sum(exported()) == 2 * SIZE)


def test_two_processes_download_once_and_the_waiting_one_logs_progress(
    s3, remote, content, tmp_path, monkeypatch, caplog
):
    with slow_line(s3, monkeypatch, megabytes_per_second=20) as line:
        process, answers = start_staging(remote, tmp_path)
        wait_for(lambda: recorded_parts(tmp_path) >= 1)
        with caplog.at_level(logging.INFO), staged([remote], Cache(tmp_path)) as copies:
            assert (copies / "train.beton").read_bytes() == content
        assert answers.get(timeout=30) == str(copies)
        process.join(30)
        assert "another process is downloading s3://" in caplog.text
        assert line.received < 1.1 * SIZE


def test_killed_download_resumes_with_the_missing_parts_only(
    s3, remote, content, tmp_path, monkeypatch
):
    with slow_line(s3, monkeypatch, megabytes_per_second=20) as line:
        process, _ = start_staging(remote, tmp_path)
        wait_for(lambda: recorded_parts(tmp_path) >= 3)
        process.kill()
        process.join(30)
        had = recorded_parts(tmp_path)
        assert had < 7
        line.received = 0
        with staged([remote], Cache(tmp_path)) as copies:
            assert (copies / "train.beton").read_bytes() == content
        assert line.received < SIZE - had * PART_BYTES + 100_000


def test_parts_damaged_between_two_invocations_are_downloaded_again(
    s3, remote, content, tmp_path, monkeypatch, caplog
):
    with slow_line(s3, monkeypatch, megabytes_per_second=20):
        process, _ = start_staging(remote, tmp_path)
        wait_for(lambda: recorded_parts(tmp_path) >= 2)
        process.kill()
        process.join(30)
    (part,) = tmp_path.glob("*/train.beton.part")
    with part.open("r+b") as file:
        file.write(b"damage")
    with staged([remote], Cache(tmp_path)) as copies:
        assert (copies / "train.beton").read_bytes() == content
    assert (
        "the parts of an interrupted download are damaged; downloading from scratch" in caplog.text
    )


def test_download_survives_an_outage_of_20_seconds(s3, remote, content, tmp_path, monkeypatch):
    def fail_and_return() -> None:
        wait_for(lambda: recorded_parts(tmp_path) >= 1)
        s3.kill()
        time.sleep(20)
        s3.start()

    with slow_line(s3, monkeypatch, megabytes_per_second=20):
        fault = threading.Thread(target=fail_and_return)
        fault.start()
        began = time.monotonic()
        with staged([remote], Cache(tmp_path)) as copies:
            assert (copies / "train.beton").read_bytes() == content
        fault.join(60)
    assert 20 < time.monotonic() - began < 90


def test_object_with_other_content_is_rejected_and_leaves_no_copy(remote, tmp_path):
    wrong = RemoteFile(remote.uri, remote.bytes, "0" * 64)
    with pytest.raises(ValueError, match=r"train.beton is damaged: its SHA-256 is .* upload it"):
        stage([wrong], Cache(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_object_of_another_size_is_rejected_before_its_download(remote, tmp_path):
    wrong = RemoteFile(remote.uri, remote.bytes + 1, remote.sha256)
    with pytest.raises(ValueError, match=rf"has {remote.bytes:,} bytes, but {SIZE + 1:,} were"):
        stage([wrong], Cache(tmp_path))


def test_object_that_changes_during_its_download_is_named(
    s3, remote, content, tmp_path, monkeypatch
):
    client = s3.client()
    bucket, key = remote.uri.removeprefix("s3://").split("/", 1)

    def change() -> None:
        wait_for(lambda: recorded_parts(tmp_path) >= 1)
        client.put_object(Bucket=bucket, Key=key, Body=content[::-1])

    larger = random.Random(1).randbytes(24 * PART_BYTES)
    client.put_object(Bucket=bucket, Key=key, Body=larger)
    remote = RemoteFile(remote.uri, len(larger), hashlib.sha256(larger).hexdigest())
    with slow_line(s3, monkeypatch, megabytes_per_second=40):
        fault = threading.Thread(target=change)
        fault.start()
        with pytest.raises(ValueError, match=r"train.beton changed while it was read"):
            stage([remote], Cache(tmp_path))
        fault.join(30)
    client.close()


def test_missing_object_or_bucket_is_named(s3, remote, bucket, tmp_path):
    for address, message in (
        (f"s3://{bucket}/images/other.beton", "other.beton: no such object"),
        ("s3://no-such-bucket/images/train.beton", "train.beton: no such bucket"),
    ):
        missing = RemoteFile(address, SIZE, remote.sha256)
        with pytest.raises(FileNotFoundError, match=message):
            stage([missing], Cache(tmp_path))


def test_missing_credentials_are_reported(remote, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PermissionError, match=r"no credentials .*set AWS_ACCESS_KEY_ID and"):
        stage([remote], Cache(tmp_path))


def test_reader_gets_copies_and_denied_requests_are_reported_without_secrets(tmp_path, monkeypatch):
    reader = make_user("reader", "Read:open", "List:open")
    with s3_server(tmp_path / "s3", reader) as server:
        admin = server.client()
        for bucket in ("open", "shut"):
            admin.create_bucket(Bucket=bucket)
            admin.put_object(Bucket=bucket, Key="images/x", Body=b"x")
        admin.close()
        for name, value in server.environment(reader).items():
            monkeypatch.setenv(name, value)
        checksum = hashlib.sha256(b"x").hexdigest()
        stage([RemoteFile("s3://open/images/x", 1, checksum)], Cache(tmp_path / "cache"))
        config = folder_config(image_folder(tmp_path / "tree"), prepared_dir="s3://open/prepared")
        with pytest.raises(PermissionError, match=r"s3://open/prepared/.*S3 denies access"):
            prepare(config, 32)
        remote = RemoteFile("s3://shut/images/x", 1, "0" * 64)  # of which there is no copy
        for name, secret in (
            ("AWS_SECRET_ACCESS_KEY", reader.secret),
            ("AWS_SECRET_ACCESS_KEY", "wrong"),
            ("AWS_SESSION_TOKEN", "of-another-server"),
        ):
            monkeypatch.setenv(name, secret)
            with pytest.raises(PermissionError, match="S3 denies access") as caught:
                stage([remote], Cache(tmp_path / "cache"))
            assert secret not in str(caught.value)


def test_unreachable_endpoint_is_reported_in_time_without_its_password(
    remote, tmp_path, monkeypatch
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:password@127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"127.0.0.1:9 did not answer for 3 sec") as caught:
        stage([remote], Cache(tmp_path), retry_timeout_seconds=3)
    assert time.monotonic() - began < 10
    assert "password" not in str(caught.value)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("a disk of its own to fill takes root")
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={SIZE * 5 // 2}"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_is_reported_before_any_download(remote, small_disk):
    with (small_disk / "other").open("wb") as file:
        file.write(bytes(2 * SIZE))
    with pytest.raises(OSError, match=r"disk of cluster.cache_dir .* is full: .* are free"):
        stage([remote], Cache(small_disk))
    assert not list(small_disk.glob("*/*.part"))


def variant(remote: RemoteFile, number: int) -> RemoteFile:
    """The same object under another name."""
    address = f"{remote.uri}{number}"
    with ObjectStore() as store:
        store.write(address, store.read(remote.uri).data)
    return RemoteFile(address, remote.bytes, remote.sha256)


@pytest.mark.parametrize("limit", ["disk", "setting"])
def test_least_recently_used_copies_are_evicted_but_never_those_in_use(
    remote, small_disk, tmp_path, limit
):
    cache = Cache(small_disk) if limit == "disk" else Cache(tmp_path / "cache", SIZE * 5 // 2)
    first, second, third = (variant(remote, number) for number in range(3))
    with staged([first], cache) as oldest:
        with staged([second], cache) as newer:
            pass
        with staged([third], cache) as newest:
            assert oldest.is_dir()
            assert not newer.exists()
            with pytest.raises(OSError, match=r"is full|cluster.cache_max_bytes is .* too small"):
                stage([second], cache)
    with staged([second], cache):
        assert not oldest.exists()
        assert newest.is_dir()


def test_pickled_store_has_no_secrets(s3, remote, content):
    with ObjectStore() as store:
        store.read(remote.uri, length=1)
        pickled = pickle.dumps(store)
    assert b"secret" not in pickled
    with pickle.loads(pickled) as again:
        assert again.read(remote.uri, start=5, length=7).data == content[5:12]


def test_listing_has_all_keys_below_a_prefix(bucket):
    with ObjectStore() as store:
        for name in ("a/1.txt", "a/2.txt", "b.txt"):
            store.write(f"s3://{bucket}/tree/{name}", b"")
        store.write(f"s3://{bucket}/tree2/c.txt", b"")
        assert list(store.names(f"s3://{bucket}/tree")) == ["a/1.txt", "a/2.txt", "b.txt"]


def test_file_of_many_parts_is_uploaded_completely(bucket, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(random.Random(2).randbytes(40 << 20))
    with ObjectStore() as store:
        store.upload(path, f"s3://{bucket}/folder/file")
        assert store.read(f"s3://{bucket}/folder/file").data == path.read_bytes()
