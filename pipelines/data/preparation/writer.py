"""Writing files of a data set: in this process, or in shards over a cluster."""

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from cluster.progress import Progress
from cluster.storage.files import atomic_write
from cluster.storage.s3 import ObjectStore, is_uri
from pipelines.data.config import SPLITS, DataConfig, Split, prepared_settings
from pipelines.data.format.beton import Written, with_advice, write_beton, write_samples
from pipelines.data.format.metadata import (
    FORMAT,
    SplitMetadata,
    check_settings,
    file_sha256,
    metadata_path,
    split_path,
    write_metadata,
)
from pipelines.data.preparation.prepare import split_source
from pipelines.data.preparation.shards import (
    SHARD_IMAGES,
    ShardDone,
    ShardTask,
    joined,
    write_shard,
)
from pipelines.data.sources.factory import FileImages, Images, Source, Subset, open_source
from pipelines.data.sources.images import UnreadableImageError

logger = logging.getLogger(__name__)


class ParallelMap(Protocol):
    """Calls a function on every item somewhere, and gives results with their numbers."""

    def __call__(
        self, function: Callable[[ShardTask], ShardDone], items: Sequence[ShardTask]
    ) -> Generator[tuple[int, ShardDone]]:
        """The results as they come."""
        ...


def write_missing(
    config: DataConfig,
    image_size: int,
    folder: Path,
    present: dict[Split, SplitMetadata],
    place: str,
    skip_unreadable: bool,
    spread: ParallelMap | None,
) -> Iterator[Path]:
    """Write the splits that are not `present` to a folder, and give their files."""
    settings = prepared_settings(config, image_size)
    for split, sidecar in present.items():
        check_settings(place, sidecar, split, settings)
    missing: list[Split] = [split for split in SPLITS if split not in present]
    if not missing:
        return
    source = open_source(config, image_size)
    for split, sidecar in present.items():
        if sidecar.source_sha256 != source.fingerprint:
            raise ValueError(
                f"{place}/{split}.beton was prepared from other images than the source holds "
                f"now; delete {place}/*.beton* to prepare all splits anew"
            )
    parts = split_source(source, config)
    # Shards of another source or of other settings are never taken for these.
    identity = json.dumps([FORMAT, settings, source.fingerprint], sort_keys=True)
    shards = f"{place}/shards-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    tasks = (
        {} if spread is None else {s: _tasks(f"{shards}/{s}", parts[s], config) for s in missing}
    )
    if spread is not None and any(tasks.values()):
        _make_shards(
            shards, [task for each in tasks.values() for task in each], spread, skip_unreadable
        )
    for split in missing:
        path = split_path(folder, split)
        places = [task.place for task in tasks.get(split, ())]
        if places:
            write = partial(_join, places, len(parts[split].labels))
        else:
            write = partial(write_beton, images=parts[split], config=config)
        _write_split(path, split, write, source, settings, skip_unreadable)
        yield path
        if places:
            _remove_shards(shards, split)


def _tasks(shards: str, images: Images, config: DataConfig) -> list[ShardTask]:
    """Cut images into shards, where files are what they are."""
    if isinstance(images, Subset) and isinstance(images.images, FileImages):
        images = images.images.part(images.indices)
    if not isinstance(images, FileImages):
        return []
    total = len(images.labels)
    return [
        ShardTask(
            f"{shards}-{first // SHARD_IMAGES:06}.npz",
            images.part(np.arange(first, min(first + SHARD_IMAGES, total))),
            config,
        )
        for first in range(0, total, SHARD_IMAGES)
    ]


def _make_shards(
    shards: str, tasks: Sequence[ShardTask], spread: ParallelMap, skip_unreadable: bool
) -> None:
    if not is_uri(shards):
        Path(shards).mkdir(exist_ok=True)
    total = sum(len(task.images.labels) for task in tasks)
    with Progress("encoding", total) as progress, closing(spread(write_shard, tasks)) as results:
        for _, done in results:
            if done.skipped and not skip_unreadable:
                raise with_advice(UnreadableImageError(done.skipped[0]))
            progress.add(done.num_images)


def _join(places: Sequence[str], total: int, path: Path, *, skip_unreadable: bool) -> Written:
    with Progress(f"writing {path.name}", total) as progress:
        samples = progress.counted(joined(places))
        return write_samples(path, total, samples, skip_unreadable=skip_unreadable)


def _remove_shards(shards: str, split: Split) -> None:
    if is_uri(shards):
        with ObjectStore() as store:
            for name in store.names(shards):
                if name.startswith(f"{split}-"):
                    store.delete(f"{shards}/{name}")
        return
    for path in Path(shards).glob(f"{split}-*"):
        path.unlink()
    with suppress(OSError):  # other splits' shards are still there, or it never was
        Path(shards).rmdir()


def _write_split(
    path: Path,
    split: Split,
    write: Callable[..., Written],
    source: Source,
    settings: dict[str, str | int | float],
    skip_unreadable: bool,
) -> None:
    metadata_path(path).unlink(missing_ok=True)
    logger.info("writing %s", path)
    try:
        with atomic_write(path) as part:
            written = write(path=part, skip_unreadable=skip_unreadable)
            sidecar = SplitMetadata(
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
        write_metadata(path, sidecar)
    except OSError as error:
        # It says itself which file: an image that is not there, an object, a shard.
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{path} cannot be written: {error.strerror}; free disk space or set data.prepared_dir",
        ) from error
    if written.skipped:
        logger.warning(
            "%s: %d unreadable images left out: %s",
            path,
            len(written.skipped),
            "; ".join(written.skipped[:20]),
        )


def _range(values: np.ndarray) -> tuple[int, int]:
    return int(values.min()), int(values.max())
