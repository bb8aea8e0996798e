"""Shards: parts of a split, encoded in parallel and then concatenated."""

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipelines.data.config import DataConfig
from pipelines.data.format.encoding import Sample, encode
from pipelines.data.preparation.destination import read_bytes, write_bytes
from pipelines.data.sources.base import FileImages, Images, Subset
from pipelines.data.sources.images import UnreadableImageError

SHARD_IMAGES = 512


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
    """Encode the images of a shard, unless an undamaged shard exists.

    Raises:
        OSError: an image cannot be read, or the shard cannot be written.
        ValueError: an image is too large to store.
    """
    total = len(task.images.labels)
    try:
        samples = read_shard(task.location)
        errors = (str(sample) for sample in samples if isinstance(sample, Exception))
        return ShardResult(total, tuple(errors))
    except (FileNotFoundError, zipfile.BadZipFile):
        pass  # missing, or damaged according to its checksums
    cv2.setNumThreads(1)  # this call has one CPU
    samples = list(encode(task.images, task.config, task.images.reading_threads))
    encoded = [sample for sample in samples if isinstance(sample, Sample)]
    unreadable = {
        number: str(sample)
        for number, sample in enumerate(samples)
        if isinstance(sample, UnreadableImageError)
    }
    file = io.BytesIO()
    np.savez(
        file,
        records=np.concatenate([each.record for each in encoded]) if encoded else np.empty(0),
        lengths=np.array([each.data.nbytes for each in encoded], np.int64),
        data=np.concatenate([each.data for each in encoded]) if encoded else np.empty(0, np.uint8),
        unreadable=np.array(json.dumps(unreadable)),
    )
    write_bytes(task.location, file.getbuffer())
    return ShardResult(total, tuple(unreadable.values()))


def read_shard(location: str) -> list[Sample | UnreadableImageError]:
    """Read the encoded images of a shard, in order.

    Raises:
        FileNotFoundError: the shard does not exist.
        zipfile.BadZipFile: the shard is damaged.
    """
    content = read_bytes(location)
    with np.load(io.BytesIO(content), allow_pickle=False) as shard:
        records, lengths, data = (shard[name] for name in ("records", "lengths", "data"))
        unreadable = {int(k): text for k, text in json.loads(str(shard["unreadable"])).items()}
    ends = np.cumsum(lengths)
    encoded = (
        Sample(records[i : i + 1], data[ends[i] - lengths[i] : ends[i]])
        for i in range(len(lengths))
    )
    return [
        UnreadableImageError(unreadable[number]) if number in unreadable else next(encoded)
        for number in range(len(lengths) + len(unreadable))
    ]


def joined(locations: Sequence[str]) -> Iterator[Sample | UnreadableImageError]:
    """Read several shards, in order.

    Raises:
        OSError: a shard is damaged.
    """
    for location in locations:
        try:
            samples = read_shard(location)
        except zipfile.BadZipFile as error:
            raise OSError(
                f"{location} is damaged ({error}); run the command again to write it again"
            ) from error
        yield from samples
