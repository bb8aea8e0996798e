"""Stage prepared files from S3 on a worker's node."""

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
    """Yield settings whose prepared files are on this node.

    Raises:
        OSError: the files cannot be downloaded; see `cluster.storage.cache.staged`.
        ValueError: the files do not match their metadata files.
    """
    if not is_uri(config.prepared_dir):
        yield config
        return
    with staged(remote_files(config.prepared_dir), cache) as folder:
        yield replace(config, prepared_dir=str(folder))


def remote_files(folder: str) -> list[RemoteFile]:
    """Return the prepared files and metadata files in S3, with their checksums."""
    files = []
    with ObjectStore(retry_timeout_seconds=START_TIMEOUT_SECONDS) as store:
        for split in SPLITS:
            uri = f"{folder}/{split}.beton"
            metadata, content = read_remote_metadata(uri, store)
            checksum = hashlib.sha256(content).hexdigest()
            files += [
                RemoteFile(f"{uri}.json", len(content), checksum),
                RemoteFile(uri, metadata.bytes, metadata.sha256),
            ]
    return files
