"""Shards: parts of a split, encoded in parallel and then concatenated."""

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipelines.data.config import DataConfig
from pipelines.data.format.encoding import Sample, encode
from pipelines.data.preparation.destination import new_file, opened_file
from pipelines.data.sources.base import FileImages, Images, Subset
from pipelines.data.sources.images import UnreadableImageError

SHARD_IMAGES = 512
_COLUMNS = ("records", "lengths", "digests", "moments")
_DATA, _UNREADABLE = "data", "unreadable"


@dataclass(frozen=True)
class ShardTask:
    """Input of `write_shard`."""

    location: str
    """Path or S3 URI of the shard."""
    images: FileImages
    """Images to encode."""
    config: DataConfig
    """Settings of the encoding."""


@dataclass(frozen=True)
class ShardResult:
    """Result of `write_shard`."""

    num_images: int
    """Number of images, including unreadable ones."""
    skipped: tuple[str, ...]
    """Error message of each unreadable image."""


def shard_tasks(prefix: str, images: Images, config: DataConfig) -> list[ShardTask]:
    """Divide images into shards; only images in separate files can be divided.

    Args:
        prefix: path or S3 URI of the shards, without their numbers.
        images: the images of a split.
        config: settings of the encoding.

    Returns:
        Tasks in the order of the images; empty for images in memory.
    """
    if isinstance(images, Subset) and isinstance(images.images, FileImages):
        images = images.images.part(images.indices)
    if not isinstance(images, FileImages):
        return []
    total = len(images.labels)
    return [
        ShardTask(
            f"{prefix}-{first // SHARD_IMAGES:06}.npz",
            images.part(np.arange(first, min(first + SHARD_IMAGES, total))),
            config,
        )
        for first in range(0, total, SHARD_IMAGES)
    ]


def write_shard(task: ShardTask) -> ShardResult:
    """Encode the images of a shard, unless a good one exists.

    Raises:
        OSError: an image cannot be read, or the shard cannot be written.
        ValueError: an image is too large to store.
    """
    total = len(task.images.labels)
    # Unreadable images are tried again: they may have been repaired, or be allowed now.
    if _is_complete(task.location):
        return ShardResult(total, ())
    cv2.setNumThreads(1)  # this call has one CPU
    samples = encode(task.images, task.config, threads=task.images.reading_threads, decoders=1)
    with closing(samples), new_file(task.location) as path:
        unreadable = _write_samples(path, samples)
    return ShardResult(total, tuple(unreadable.values()))


def _write_samples(path: Path, samples: Iterable[Sample | UnreadableImageError]) -> dict[int, str]:
    """Write samples one by one, which bounds the memory.

    Returns:
        Error message of each unreadable image, by its number.
    """
    unreadable: dict[int, str] = {}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
    with zipfile.ZipFile(path, "w") as shard:
        with shard.open(_DATA, "w", force_zip64=True) as data:
            for number, sample in enumerate(samples):
                if isinstance(sample, UnreadableImageError):
                    unreadable[number] = str(sample)
                    continue
                data.write(sample.data.data)
                columns["records"].append(sample.record)
                columns["lengths"].append(np.array([sample.data.nbytes]))
                columns["digests"].append(np.frombuffer(sample.digest, np.uint8)[None])
                columns["moments"].append(sample.moments[None])
        for name, rows in columns.items():
            with shard.open(name, "w") as file:
                np.lib.format.write_array(file, np.concatenate(rows) if rows else np.empty(0))
        shard.writestr(_UNREADABLE, json.dumps(unreadable))
    return unreadable


def _is_complete(location: str) -> bool:
    """Return whether a shard exists, is undamaged and has no unreadable images."""
    try:
        return not any(isinstance(sample, Exception) for sample in read_shard(location))
    except (FileNotFoundError, zipfile.BadZipFile):
        return False


def read_shard(location: str) -> Iterator[Sample | UnreadableImageError]:
    """Read the encoded images of a shard one by one, in order.

    Raises:
        FileNotFoundError: the shard does not exist.
        zipfile.BadZipFile: the shard is damaged, which may show only after the last image.
    """
    with opened_file(location) as file, zipfile.ZipFile(file) as shard:
        columns = []
        for name in _COLUMNS:
            with shard.open(name) as column:
                columns.append(np.lib.format.read_array(io.BytesIO(column.read())))
        records, lengths, digests, moments = columns
        unreadable = {int(k): text for k, text in json.loads(shard.read(_UNREADABLE)).items()}
        row = 0
        with shard.open(_DATA) as data:
            for number in range(len(lengths) + len(unreadable)):
                if number in unreadable:
                    yield UnreadableImageError(unreadable[number])
                    continue
                content = np.frombuffer(data.read(lengths[row]), np.uint8)
                record = records[row : row + 1]
                yield Sample(record, content, digests[row].tobytes(), moments[row])
                row += 1
            data.read()  # the checksum is compared at the end


def joined(locations: Sequence[str]) -> Iterator[Sample | UnreadableImageError]:
    """Read several shards, in order.

    Raises:
        OSError: a shard is damaged.
    """
    for location in locations:
        try:
            yield from read_shard(location)
        except zipfile.BadZipFile as error:
            raise OSError(
                f"{location} is damaged ({error}); run the command again to write it again"
            ) from error
