"""Prepare the three files of a data set."""

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from cluster.progress import Progress
from pipelines.data.config import SPLITS, DataConfig, Split, prepared_path, prepared_settings
from pipelines.data.fit import ImageFacts, facts_of_files, facts_of_source
from pipelines.data.format.beton import LISTED_ERRORS, Written, unreadable_error, write_beton
from pipelines.data.format.metadata import (
    FORMAT,
    DatasetInfo,
    SplitMetadata,
    check_settings,
    read_info,
    split_path,
    write_metadata,
)
from pipelines.data.preparation.comparison import (
    changed_error,
    check_source_unchanged,
    read_digests,
    source_record,
)
from pipelines.data.preparation.destination import (
    SHARD_FOLDERS,
    Destination,
    Settings,
    open_destination,
)
from pipelines.data.preparation.shards import ShardResult, ShardTask, shard_tasks, write_shard
from pipelines.data.preparation.writer import (
    Shared,
    check_classes_remain,
    count_duplicates,
    join_shards,
    make_metadata,
    write_split,
)
from pipelines.data.sources.base import Images, Source, split_source
from pipelines.data.sources.factory import open_source

logger = logging.getLogger(__name__)

SIMILAR_STATISTICS = 0.1
"""Max difference of a configured mean or std, from 0 to 1, that is not reported."""


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
    check: Callable[[ImageFacts], None] = lambda facts: None,
) -> DatasetInfo:
    """Write those of train.beton, val.beton and test.beton that are missing.

    Existing files are compared with the source, unless `data.source_dir` is empty.

    Several processes may call this function at once. In a local folder one process writes and the
    others wait; in S3 each process writes the same bytes, and a process with other settings is
    rejected. The bytes of the files depend neither on `parallel_map` nor on interruptions.

    Args:
        config: settings of the data.
        image_size: height and width of the images of sources without sizes of their own.
        skip_unreadable: skip images that cannot be decoded.
        parallel_map: encodes the images of an image folder in shards, which are kept until the file
            is written, so that an interrupted preparation resumes. None: encode in this process.
        check: called with what is known about the images, before they are encoded and at the end;
            raises ValueError if a run cannot use them.

    Raises:
        UnreadableImageError: images cannot be decoded, unless `skip_unreadable`.
        FileNotFoundError: the source is missing.
        ValueError: the source is not fit for training, files with other settings exist, or the
            images have changed since they were prepared.
        OSError: the files cannot be written.
    """
    with open_destination(prepared_path(config, image_size)) as destination:
        PreparationJob(
            config=config,
            image_size=image_size,
            destination=destination,
            skip_unreadable=skip_unreadable,
            parallel_map=parallel_map,
            check=check,
        ).run()
    info = read_info(config, image_size)
    check(facts_of_files(info))
    _report_other_statistics(config, info)
    return info


def _report_other_statistics(config: DataConfig, info: DatasetInfo) -> None:
    """Log that the configured mean or std is that of other images."""
    for name, ours in (("mean", info.mean), ("std", info.std)):
        given = getattr(config, name)
        if given is not None and np.abs(np.subtract(given, ours)).max() > SIMILAR_STATISTICS:
            logger.warning(
                "data.%s is %s, but %s over the training images; set it to null to use that",
                name, list(given), list(ours),
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PreparationJob:
    """Preparation of the missing splits of a data set; see `prepare`."""

    config: DataConfig
    image_size: int
    destination: Destination
    skip_unreadable: bool
    parallel_map: ParallelMap | None
    check: Callable[[ImageFacts], None]

    @property
    def settings(self) -> Settings:
        """Settings that determine the content of the files."""
        return prepared_settings(self.config, self.image_size)

    def run(self) -> None:
        """Write the missing splits, or compare existing ones with their source."""
        if len(self.destination.present()) == len(SPLITS):
            info = read_info(self.config, self.image_size)
            check_source_unchanged(self.config, self.image_size, info)
            return
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
        self.check(facts_of_source(source, images, self.config))
        # All shards come first, so that all CPUs are busy until the last split is encoded.
        missing_images: dict[Split, Images] = {split: images[split] for split in missing}
        tasks = self._encode_shards(self._shard_folder(source), missing_images)
        with self.destination.working_folder() as folder:
            written = self._write_files(folder, source, missing_images, tasks)
            digests: dict[Split, np.ndarray] = {
                split: read_digests(images[split]) for split in present
            }
            digests |= {split: each.digests for split, each in written.items()}

            def name(split: Split, row: int) -> str:
                return images[split].name(
                    int(written[split].numbers[row]) if split in written else row
                )

            shared = Shared(
                source.class_names,
                source_record(source, self.config),
                count_duplicates(digests, name),
                self.settings,
            )
            for split, each in written.items():
                path = split_path(folder, split)
                write_metadata(path, make_metadata(path, split, each, shared))
                self.destination.publish(path)
        self.destination.remove_shards()

    def _check_source(self, present: dict[Split, SplitMetadata], source: Source) -> None:
        for metadata in present.values():
            if metadata.source.sha256 != source.fingerprint:
                raise changed_error(
                    self.destination.location, metadata.source, source, metadata.class_names
                )
        sentences = [line for lines in source.unreadable.values() for line in lines]
        if sentences and not self.skip_unreadable:
            raise unreadable_error(sentences)

    def _shard_folder(self, source: Source) -> str:
        """Return a folder name for the shards, from source and settings."""
        identity = json.dumps(
            [FORMAT, self.settings, source.fingerprint, source.stamps], sort_keys=True
        )
        return f"{SHARD_FOLDERS}{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

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
        skipped: list[str] = []
        with (
            Progress("encoding", total) as progress,
            closing(self.parallel_map(write_shard, tasks)) as results,
        ):
            for _, result in results:
                for sentence in result.skipped[: max(LISTED_ERRORS - len(skipped), 0)]:
                    logger.warning("%s", sentence)
                skipped += result.skipped
                progress.add(result.num_images)
        if skipped and not self.skip_unreadable:
            raise unreadable_error(sorted(skipped))
        return by_split

    def _write_files(
        self,
        folder: Path,
        source: Source,
        images: dict[Split, Images],
        tasks: dict[Split, list[ShardTask]],
    ) -> dict[Split, Written]:
        """Write the files of all given splits, or none, without metadata."""
        written: dict[Split, Written] = {}
        try:
            for split, part in images.items():

                def write(path: Path, split: Split = split, part: Images = part) -> Written:
                    if tasks.get(split):
                        return join_shards(path, tasks[split])
                    return write_beton(path, part, self.config, skip_unreadable=True)

                written[split] = write_split(split_path(folder, split), write)
            skipped = [sentence for each in written.values() for sentence in each.skipped]
            if skipped and not self.skip_unreadable:
                raise unreadable_error(skipped)
            for split, each in written.items():
                check_classes_remain(split, each, images[split].labels, source.class_names)
        except BaseException:
            for split in written:
                split_path(folder, split).unlink(missing_ok=True)
            raise
        return {
            split: replace(each, skipped=(*source.unreadable.get(split, ()), *each.skipped))
            for split, each in written.items()
        }
