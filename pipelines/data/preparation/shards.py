"""Pieces of a file to come, encoded side by side: made once, checked, and joined in order."""

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cluster.storage.files import atomic_write
from cluster.storage.s3 import ObjectStore, is_uri
from pipelines.data.config import DataConfig
from pipelines.data.format.encoding import Sample, encode
from pipelines.data.sources.factory import REMOTE_READS, FileImages
from pipelines.data.sources.images import UnreadableImageError

SHARD_IMAGES = 512


@dataclass(frozen=True)
class ShardTask:
    """What one call makes."""

    place: str
    """Path or address of the shard."""
    images: FileImages
    config: DataConfig


@dataclass(frozen=True)
class ShardDone:
    """What one call made."""

    num_images: int
    skipped: tuple[str, ...]
    """What is wrong with each unreadable image."""


def write_shard(task: ShardTask) -> ShardDone:
    """Encode the images of a shard, unless it is there and whole.

    Raises:
        OSError: an image cannot be read, or the shard cannot be written.
        ValueError: an image is too large to store.
    """
    total = len(task.images.labels)
    try:
        samples = read_shard(task.place)
        return ShardDone(total, tuple(str(each) for each in samples if isinstance(each, Exception)))
    except (FileNotFoundError, zipfile.BadZipFile):
        pass  # not there, or damaged: its checksums do not hold
    cv2.setNumThreads(1)  # this call has one CPU
    threads = REMOTE_READS if is_uri(task.images.root) else 1
    samples = list(encode(task.images, task.config, threads))
    whole = [sample for sample in samples if isinstance(sample, Sample)]
    unreadable = {
        number: str(sample)
        for number, sample in enumerate(samples)
        if isinstance(sample, UnreadableImageError)
    }
    file = io.BytesIO()
    np.savez(
        file,
        records=np.concatenate([each.record for each in whole]) if whole else np.empty(0),
        lengths=np.array([each.data.nbytes for each in whole], np.int64),
        data=np.concatenate([each.data for each in whole]) if whole else np.empty(0, np.uint8),
        unreadable=np.array(json.dumps(unreadable)),
    )
    _write(task.place, file.getbuffer())
    return ShardDone(total, tuple(unreadable.values()))


def read_shard(place: str) -> list[Sample | UnreadableImageError]:
    """Read what was encoded, in order.

    Raises:
        FileNotFoundError: there is no such shard.
        zipfile.BadZipFile: it is damaged.
    """
    if is_uri(place):
        with ObjectStore() as store:
            content = store.read(place).data
    else:
        content = Path(place).read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as shard:
        records, lengths, data = (shard[name] for name in ("records", "lengths", "data"))
        unreadable = {int(k): text for k, text in json.loads(str(shard["unreadable"])).items()}
    ends = np.cumsum(lengths)
    whole = (
        Sample(records[i : i + 1], data[ends[i] - lengths[i] : ends[i]])
        for i in range(len(lengths))
    )
    return [
        UnreadableImageError(unreadable[number]) if number in unreadable else next(whole)
        for number in range(len(lengths) + len(unreadable))
    ]


def joined(places: Sequence[str]) -> Iterator[Sample | UnreadableImageError]:
    """Read shards one after the other."""
    for place in places:
        try:
            samples = read_shard(place)
        except zipfile.BadZipFile as error:
            raise OSError(f"{place} was damaged ({error}); start again to make it anew") from error
        yield from samples


def _write(place: str, content: memoryview) -> None:
    """Write a shard whole or not at all, whoever else may be writing it."""
    if is_uri(place):
        with ObjectStore() as store:
            store.write(place, bytes(content))
        return
    try:
        with atomic_write(Path(place), unique=True) as part:
            part.write_bytes(content)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{place} cannot be written: {error.strerror}; free disk space or set data.prepared_dir",
        ) from error
