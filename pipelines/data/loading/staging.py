"""Prepared files that lie in S3, as a worker reads them: from its node's disk."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from cluster.storage.cache import Cache, staged
from cluster.storage.download import RemoteFile
from cluster.storage.s3 import START_TIMEOUT_SECONDS, ObjectStore, is_uri
from pipelines.data.config import SPLITS, DataConfig
from pipelines.data.format.metadata import read_remote_metadata


@contextmanager
def staged_data(config: DataConfig, cache: Cache) -> Iterator[DataConfig]:
    """Give settings whose folder is on this node and stays there inside the context.

    Raises:
        OSError: the files cannot be had; see `cluster.storage.cache.staged`.
        ValueError: they are not what their sidecars say.
    """
    if not is_uri(config.prepared_dir):
        yield config
        return
    with staged(remote_files(config.prepared_dir), cache) as folder:
        yield replace(config, folder=str(folder))


def remote_files(folder: str) -> list[RemoteFile]:
    """The prepared files and sidecars in S3, with the checksums that they must have."""
    files = []
    with ObjectStore(retry_timeout_seconds=START_TIMEOUT_SECONDS) as store:
        for split in SPLITS:
            address = f"{folder}/{split}.beton"
            sidecar, content = read_remote_metadata(address, store)
            checksum = hashlib.sha256(content).hexdigest()
            files += [
                RemoteFile(f"{address}.json", len(content), checksum),
                RemoteFile(address, sidecar.bytes, sidecar.sha256),
            ]
    return files
