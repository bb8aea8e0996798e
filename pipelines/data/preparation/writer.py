"""Write one prepared split and its metadata file."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cluster.progress import Progress
from cluster.storage.files import atomic_write
from pipelines.data.config import Split
from pipelines.data.format.beton import Written, write_samples
from pipelines.data.format.metadata import (
    FORMAT,
    SplitMetadata,
    file_sha256,
    metadata_path,
    write_metadata,
)
from pipelines.data.preparation.destination import Settings
from pipelines.data.preparation.shards import ShardTask, joined
from pipelines.data.sources.base import Source

logger = logging.getLogger(__name__)

LISTED_ERRORS = 20


def join_shards(path: Path, tasks: Sequence[ShardTask], *, skip_unreadable: bool) -> Written:
    """Write the samples of several shards to one file."""
    total = sum(len(task.images.labels) for task in tasks)
    with Progress(f"writing {path.name}", total) as progress:
        samples = progress.counted(joined([task.location for task in tasks]))
        return write_samples(path, total, samples, skip_unreadable=skip_unreadable)


def write_split(
    path: Path, split: Split, write: Callable[[Path], Written], source: Source, settings: Settings
) -> None:
    """Write a split and its metadata file atomically.

    Args:
        path: the prepared file.
        split: the split.
        write: writes the images to a path.
        source: the source of the images.
        settings: settings that determine the content of the file.

    Raises:
        OSError: the file cannot be written.
    """
    # The metadata file marks a complete file, so the old one is deleted first.
    metadata_path(path).unlink(missing_ok=True)
    logger.info("writing %s", path)
    try:
        with atomic_write(path) as part:
            written = write(part)
            metadata = SplitMetadata(
                format=FORMAT,
                split=split,
                class_names=list(source.class_names),
                num_samples=len(written.labels),
                samples_per_class=np.bincount(
                    written.labels, minlength=len(source.class_names)
                ).tolist(),
                heights=_range(written.sizes[:, 0]),
                widths=_range(written.sizes[:, 1]),
                bytes=part.stat().st_size,
                sha256=file_sha256(part),
                source_sha256=source.fingerprint,
                skipped=list(written.skipped),
                settings=settings,
            )
        write_metadata(path, metadata)
    except OSError as error:
        # An error with a file name, or without a number, already names its image, object or shard.
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{path} cannot be written: {error.strerror}; free disk space or set data.prepared_dir",
        ) from error
    if written.skipped:
        logger.warning(
            "%s: skipped %d unreadable images: %s",
            path,
            len(written.skipped),
            "; ".join(written.skipped[:LISTED_ERRORS]),
        )


def _range(values: np.ndarray) -> tuple[int, int]:
    return int(values.min()), int(values.max())
