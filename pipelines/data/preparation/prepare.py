"""Prepare the three files of a data set."""

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cluster.progress import Progress
from pipelines.data.config import SPLITS, DataConfig, Split, prepared_path, prepared_settings
from pipelines.data.format.beton import Written, with_advice, write_beton
from pipelines.data.format.metadata import (
    FORMAT,
    DatasetInfo,
    SplitMetadata,
    check_settings,
    read_info,
    split_path,
)
from pipelines.data.preparation.destination import Destination, Settings, open_destination
from pipelines.data.preparation.shards import ShardResult, ShardTask, shard_tasks, write_shard
from pipelines.data.preparation.writer import join_shards, write_split
from pipelines.data.sources.base import Images, Source, split_source
from pipelines.data.sources.factory import open_source
from pipelines.data.sources.images import UnreadableImageError


class ParallelMap(Protocol):
    """Parallel map: yields the numbered results of a function."""

    def __call__(
        self, function: Callable[[ShardTask], ShardResult], items: Sequence[ShardTask]
    ) -> Generator[tuple[int, ShardResult]]:
        """Yield number and result of each item, in order of completion."""
        ...


def prepare(
    config: DataConfig,
    image_size: int,
    *,
    skip_unreadable: bool = False,
    parallel_map: ParallelMap | None = None,
) -> DatasetInfo:
    """Write those of train.beton, val.beton and test.beton that are missing.

    Several processes may call this function at once. In a local folder one process writes and the
    others wait; in S3 each process writes the same bytes, and a process with other settings is
    rejected. The bytes of the files depend neither on `parallel_map` nor on interruptions.

    Args:
        config: settings of the data.
        image_size: height and width of the images of sources without sizes of their own.
        skip_unreadable: skip images that cannot be decoded.
        parallel_map: encodes the images of an image folder in shards, which are kept until the file
            is written, so that an interrupted preparation resumes. None: encode in this process.

    Raises:
        UnreadableImageError: an image cannot be decoded, unless `skip_unreadable`.
        FileNotFoundError: the source is missing.
        ValueError: the source is not fit for training, or files with other settings exist.
        OSError: the files cannot be written.
    """
    with open_destination(prepared_path(config, image_size)) as destination:
        PreparationJob(
            config=config,
            image_size=image_size,
            destination=destination,
            skip_unreadable=skip_unreadable,
            parallel_map=parallel_map,
        ).run()
    return read_info(config, image_size)


@dataclass(frozen=True, kw_only=True)
class PreparationJob:
    """Preparation of the missing splits of a data set; see `prepare`."""

    config: DataConfig
    image_size: int
    destination: Destination
    skip_unreadable: bool
    parallel_map: ParallelMap | None

    @property
    def settings(self) -> Settings:
        """Settings that determine the content of the files."""
        return prepared_settings(self.config, self.image_size)

    def run(self) -> None:
        """Write the missing splits."""
        # In S3 another process may remove the shards of a split while it is written: try again.
        while len(self.destination.present()) < len(SPLITS):
            with self.destination.lock(self.settings):
                self._write_missing()

    def _write_missing(self) -> None:
        # Another process may have written splits before this one got the lock.
        present = self.destination.present()
        missing: list[Split] = [split for split in SPLITS if split not in present]
        for split, metadata in present.items():
            check_settings(self.destination.location, metadata, split, self.settings)
        if not missing:
            return
        source = open_source(self.config, self.image_size)
        self._check_source(present, source)
        images = split_source(source, self.config)
        # All shards come first, so that all CPUs are busy until the last split is encoded.
        shards = self._shard_folder(source)
        missing_images: dict[Split, Images] = {split: images[split] for split in missing}
        tasks = self._encode_shards(shards, missing_images)
        with self.destination.working_folder() as folder:
            for split in missing:
                path = split_path(folder, split)

                def write(part: Path, split: Split = split) -> Written:
                    return self._write_images(part, images[split], tasks.get(split, []))

                write_split(path, split, write, source, self.settings)
                self.destination.publish(path)
                if tasks.get(split):
                    self.destination.remove_shards(shards, split)

    def _check_source(self, present: dict[Split, SplitMetadata], source: Source) -> None:
        location = self.destination.location
        for split, metadata in present.items():
            if metadata.source_sha256 != source.fingerprint:
                raise ValueError(
                    f"{location}/{split}.beton was prepared from other images than the source has "
                    f"now; delete {location}/*.beton* to prepare all splits again"
                )

    def _shard_folder(self, source: Source) -> str:
        """Return a folder name for the shards, from source and settings."""
        identity = json.dumps([FORMAT, self.settings, source.fingerprint], sort_keys=True)
        return f"shards-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def _encode_shards(
        self, folder: str, images: dict[Split, Images]
    ) -> dict[Split, list[ShardTask]]:
        """Encode images in shards and return the tasks of each split."""
        if self.parallel_map is None:
            return {}
        prefix = f"{self.destination.location}/{folder}"
        by_split: dict[Split, list[ShardTask]] = {
            split: shard_tasks(f"{prefix}/{split}", images[split], self.config) for split in images
        }
        tasks = [task for split_tasks in by_split.values() for task in split_tasks]
        if not tasks:
            return by_split
        self.destination.make_shard_folder(folder)
        total = sum(len(task.images.labels) for task in tasks)
        with (
            Progress("encoding", total) as progress,
            closing(self.parallel_map(write_shard, tasks)) as results,
        ):
            for _, result in results:
                if result.skipped and not self.skip_unreadable:
                    raise with_advice(UnreadableImageError(result.skipped[0]))
                progress.add(result.num_images)
        return by_split

    def _write_images(self, path: Path, images: Images, tasks: Sequence[ShardTask]) -> Written:
        if tasks:
            return join_shards(path, tasks, skip_unreadable=self.skip_unreadable)
        return write_beton(path, images, self.config, skip_unreadable=self.skip_unreadable)
