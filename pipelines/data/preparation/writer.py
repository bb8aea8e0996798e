"""Write prepared splits and their metadata files."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from cluster.progress import Progress
from cluster.storage.files import atomic_write
from pipelines.data.config import SPLITS, Split
from pipelines.data.format.beton import LISTED_ERRORS, Written, write_samples
from pipelines.data.format.metadata import (
    FORMAT,
    SourceRecord,
    SplitMetadata,
    file_sha256,
    metadata_path,
)
from pipelines.data.preparation.destination import Settings
from pipelines.data.preparation.shards import ShardTask, joined
from pipelines.data.sources.files import printable

logger = logging.getLogger(__name__)

SHORT_HASH = 8
"""Bytes of a hash that are compared for duplicates."""


@dataclass(frozen=True)
class Shared:
    """Metadata that the files of all splits share."""

    class_names: tuple[str, ...]
    source: SourceRecord
    duplicates: dict[str, int]
    settings: Settings


def join_shards(path: Path, tasks: Sequence[ShardTask]) -> Written:
    """Write the samples of several shards to one file, without unreadable images."""
    total = sum(len(task.images.labels) for task in tasks)
    with Progress(f"writing {path.name}", total) as progress:
        samples = progress.counted(joined([task.location for task in tasks]))
        return write_samples(path, total, samples, skip_unreadable=True)


def write_split(path: Path, write: Callable[[Path], Written]) -> Written:
    """Write a split atomically, without its metadata file.

    Args:
        path: the prepared file.
        write: writes the images to a path.

    Raises:
        OSError: the file cannot be written.
    """
    # The metadata file marks a complete file, so the old one is deleted first.
    metadata_path(path).unlink(missing_ok=True)
    logger.info("writing %s", path)
    try:
        with atomic_write(path) as part:
            return write(part)
    except OSError as error:
        # An error with a file name, or without a number, already names its image, object or shard.
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{path} cannot be written: {error.strerror}; free disk space or set data.prepared_dir",
        ) from error


def check_classes_remain(
    split: Split, written: Written, expected: np.ndarray, class_names: Sequence[str]
) -> None:
    """Check that skipped images leave no class empty, and log them.

    Args:
        split: the split.
        written: its images.
        expected: labels of all images, including skipped ones (images,).
        class_names: class names in label order.

    Raises:
        ValueError: all images of a class are unreadable.
    """
    if not written.skipped:
        return
    size = len(class_names)
    before = np.bincount(expected, minlength=size)
    empty = np.flatnonzero((before > 0) & (np.bincount(written.labels, minlength=size) == 0))
    if len(empty):
        names = ", ".join(repr(class_names[label]) for label in empty[:LISTED_ERRORS])
        raise ValueError(
            f"{split}: all images of class {names} are unreadable, so that the class would be "
            f"empty ({written.skipped[0]}); repair the images, or remove the class"
        )
    logger.warning(
        "%s: skipped %d unreadable images: %s",
        split,
        len(written.skipped),
        "; ".join(written.skipped[:LISTED_ERRORS]),
    )


def make_metadata(path: Path, split: Split, written: Written, shared: Shared) -> SplitMetadata:
    """Return the metadata of a written file."""
    mean, square = written.moments[:3], written.moments[3:]
    return SplitMetadata(
        format=FORMAT,
        split=split,
        class_names=list(shared.class_names),
        num_samples=len(written.labels),
        samples_per_class=np.bincount(written.labels, minlength=len(shared.class_names)).tolist(),
        heights=_range(written.sizes[:, 0]),
        widths=_range(written.sizes[:, 1]),
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        content_sha256=content_sha256(written.digests),
        mean=_rounded(mean),
        # A deviation of 0, of images of one colour, cannot be divided by.
        std=_rounded(np.sqrt(np.maximum(square - mean**2, 1e-8))),
        source=shared.source,
        skipped=list(written.skipped),
        duplicates=shared.duplicates,
        settings=shared.settings,
    )


def count_duplicates(
    digests: Mapping[Split, np.ndarray], name: Callable[[Split, int], str]
) -> dict[str, int]:
    """Count and log images that are also in an earlier split.

    Args:
        digests: hash of every image of each split (images, 16).
        name: function that returns the name of a split's image by its row.
    """
    counts: dict[str, int] = {}
    hashes = {split: _short(digests[split]) for split in SPLITS}
    for first, second in combinations(SPLITS, 2):
        rows = np.flatnonzero(np.isin(hashes[second], hashes[first]))
        if not len(rows):
            continue
        counts[f"{first} and {second}"] = len(rows)
        logger.warning(
            "%d of %d images in %s are also in %s, such as %s",
            len(rows), len(hashes[second]), second, first, printable(name(second, int(rows[0]))),
        )  # fmt: skip
    return counts


def content_sha256(digests: np.ndarray) -> str:
    """Return the SHA-256 of the hashes of images (images, 16)."""
    return hashlib.sha256(digests.tobytes()).hexdigest()


def _short(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests[:, :SHORT_HASH]).view(np.uint64)[:, 0]


def _range(values: np.ndarray) -> tuple[int, int]:
    return int(values.min()), int(values.max())


def _rounded(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (round(float(value), 4) for value in values)
    return red, green, blue
