"""Compare prepared files with their source."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cluster.storage.s3 import is_uri
from pipelines.data.config import LOCAL_SOURCES, SPLITS, DataConfig
from pipelines.data.format.metadata import DatasetInfo, SourceRecord
from pipelines.data.preparation.writer import content_sha256
from pipelines.data.sources.base import REMOTE_READS, Images, Source, split_source
from pipelines.data.sources.class_index import read_matching_index
from pipelines.data.sources.factory import open_source
from pipelines.data.sources.images import UnreadableImageError, digest_of

logger = logging.getLogger(__name__)

LISTED_CLASSES = 5
"""Number of classes in a message."""


def source_record(source: Source, config: DataConfig) -> SourceRecord:
    """Describe a source for the metadata files."""
    return SourceRecord(
        folder=_absolute(config.source_dir),
        sha256=source.fingerprint,
        stamps_sha256=source.stamps,
        num_train=len(source.train.labels),
        num_test=len(source.test.labels),
        files_seen=source.files.seen,
        files_skipped=dict(source.files.skipped),
    )


def check_source_unchanged(config: DataConfig, image_size: int, info: DatasetInfo) -> None:
    """Check that the source is the one that was prepared.

    Without `data.source_dir` only the class index is compared.

    Raises:
        FileNotFoundError: `data.source_dir` does not exist, and is not the folder that the files
            were made from.
        ValueError: images, classes or the class index have changed.
    """
    if config.source not in LOCAL_SOURCES:
        return
    if not config.source_dir:
        _check_class_index(config, info)
        return
    if not is_uri(config.source_dir) and not Path(config.source_dir).is_dir():
        if _absolute(config.source_dir) == info.source.folder:
            logger.warning(
                "data.source_dir %s no longer exists: the images in %s are used without a "
                "comparison",
                config.source_dir,
                info.folder,
            )
            return
        raise FileNotFoundError(
            f"data.source_dir is {config.source_dir}: no such folder; correct the path, or leave "
            f"it out: {info.folder} was prepared from {info.source.folder} and needs no source"
        )
    try:
        source = open_source(config, image_size)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error}; {_without_source(info.folder)}") from error
    is_same = source.fingerprint == info.source.sha256
    if is_same and source.stamps != info.source.stamps_sha256:
        is_same = _has_equal_content(config, source, info)
    if not is_same:
        raise changed_error(info.folder, info.source, source, info.class_names)


def changed_error(
    folder: str, record: SourceRecord, source: Source, class_names: Sequence[str]
) -> ValueError:
    """Return an error that describes how a source has changed."""
    changes = [
        f"{len(images.labels):,} {part} images instead of {count:,}"
        for part, images, count in (
            ("training", source.train, record.num_train),
            ("test", source.test, record.num_test),
        )
        if len(images.labels) != count
    ]
    for verb, names, others in (
        ("new", source.class_names, class_names),
        ("missing", class_names, source.class_names),
    ):
        if different := [name for name in names if name not in set(others)]:
            changes.append(f"{verb} classes {', '.join(map(repr, different[:LISTED_CLASSES]))}")
    if not changes and list(source.class_names) != list(class_names):
        changes = ["other order of the classes"]
    return ValueError(
        f"{folder} was prepared from other images than the source has now "
        f"({', '.join(changes) or 'files were replaced or renamed'}); set data.prepared_dir to "
        f"another folder, delete {folder}/*.beton* to prepare all splits again, or "
        f"{_without_source(folder)}"
    )


def read_digests(images: Images) -> np.ndarray:
    """Read all images of a split and return their hashes (images, 16)."""

    def read(index: int) -> bytes:
        try:
            return digest_of(images.content(index))
        except UnreadableImageError:
            return digest_of(b"")

    digests = []
    with ThreadPoolExecutor(REMOTE_READS) as pool:
        # Not all at once: a million pending calls take a gigabyte.
        for indices in np.array_split(np.arange(total := len(images.labels)), total // 1024 + 1):
            digests += pool.map(read, indices.tolist())
    return np.frombuffer(b"".join(digests), np.uint8).reshape(total, -1)


def _has_equal_content(config: DataConfig, source: Source, info: DatasetInfo) -> bool:
    """Compare the files' content, which takes as long as reading them all."""
    if any(info.skipped.values()):  # the content of unreadable images is unknown
        return False
    logger.info(
        "the times of change in %s differ from those when %s was prepared, as after a copy: "
        "comparing the content of all files",
        config.source_dir,
        info.folder,
    )
    images = split_source(source, config)
    return all(
        content_sha256(read_digests(images[split])) == info.content_sha256[split]
        for split in SPLITS
    )


def _check_class_index(config: DataConfig, info: DatasetInfo) -> None:
    if not config.class_index:
        return
    names = read_matching_index(config.class_index, info.class_names, info.folder)
    if names != info.class_names:
        raise ValueError(
            f"data.class_index {config.class_index} has other names, or another order, than the "
            f"files in {info.folder} were prepared with; use the old file, or leave "
            "data.class_index out"
        )


def _absolute(folder: str) -> str:
    return folder if is_uri(folder) or not folder else str(Path(folder).resolve())


def _without_source(folder: str) -> str:
    return f"leave data.source_dir out to use {folder} as it is"
