"""Compare staging from S3 with a download in a single stream.

    python -m benchmarks.staging [--megabytes 400] [--rounds 5] [--stream 20]

The server is SeaweedFS on this machine, so it shares the processor, and nothing limits a single
stream as networks do. `--stream` sends every connection through a line of so many MB/s of its own.
Both ways end with a checked file on disk.
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from boto3 import client

from benchmarks.network import describe_machine
from cluster.local.s3_server import s3_server
from cluster.local.services import S3User
from cluster.local.throttled_proxy import ThrottledProxy
from cluster.storage.cache import Cache, staged
from cluster.storage.download import RemoteFile
from cluster.storage.s3 import ObjectStore


def main() -> None:
    """Time both ways and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stream", type=float, default=0, help="MB/s of a connection; 0: no limit")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        s3_server(Path(folder, "s3"), S3User("benchmark", "secret")) as server,
    ):
        os.environ.update(server.environment())
        s3 = server.client()
        s3.create_bucket(Bucket="images")
        s3.close()
        source = Path(folder, "file")
        source.write_bytes(os.urandom(arguments.megabytes << 20))
        remote = RemoteFile(
            "s3://images/set/train.beton",
            source.stat().st_size,
            hashlib.sha256(source.read_bytes()).hexdigest(),
        )
        with ObjectStore() as store:
            store.upload(source, remote.uri)
        if arguments.stream:
            line = ThrottledProxy(server.endpoint, arguments.stream * 1e6, shared=False)
            os.environ["AWS_ENDPOINT_URL"] = line.endpoint
        rates = {"single stream": [], "staged": []}
        for round_number in range(arguments.rounds + 1):
            target = Path(folder, f"round{round_number}")
            target.mkdir()
            for name, load in (("single stream", single_stream), ("staged", stage)):
                seconds = timed(load, remote, target)
                if round_number:  # the first warms the server up
                    rates[name].append(remote.bytes / seconds / 1e6)
    print(f"{describe_machine()}; {arguments.megabytes} MiB, {arguments.rounds} rounds in turns")
    if arguments.stream:
        print(f"every connection limited to {arguments.stream:g} MB/s")
    for name, values in rates.items():
        print(
            f"{name:14} {statistics.median(values):7.0f} MB/s "
            f"({min(values):.0f} to {max(values):.0f})"
        )
    ratios = [
        ours / theirs for ours, theirs in zip(rates["staged"], rates["single stream"], strict=True)
    ]
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def timed(load: Callable[[RemoteFile, Path], None], remote: RemoteFile, folder: Path) -> float:
    """Seconds that one way takes."""
    begun = time.perf_counter()
    load(remote, folder)
    return time.perf_counter() - begun


def stage(remote: RemoteFile, folder: Path) -> None:
    """Ours."""
    with staged([remote], Cache(folder / "cache")):
        pass


def single_stream(remote: RemoteFile, folder: Path) -> None:
    """One request for the whole object, hashed as it comes."""
    bucket, key = remote.uri.removeprefix("s3://").split("/", 1)
    s3 = client("s3")
    body = s3.get_object(Bucket=bucket, Key=key)["Body"]
    digest = hashlib.sha256()
    with (folder / "single").open("wb") as file:
        for part in body.iter_chunks(1 << 20):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    s3.close()
    assert digest.hexdigest() == remote.sha256


if __name__ == "__main__":
    main()
