"""Making the three files of a data set ready, once."""

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from cluster.storage.s3 import ObjectStore, is_uri
from pipelines.data.config import (
    SPLITS,
    DataConfig,
    Split,
    prepared_path,
    prepared_settings,
)
from pipelines.data.format.metadata import (
    DatasetInfo,
    SplitMetadata,
    is_prepared,
    metadata_path,
    read_info,
    read_metadata,
    read_remote_metadata,
    split_path,
)
from pipelines.data.sources.factory import Images, Source, Subset
from pipelines.data.splits import hold_out

if TYPE_CHECKING:
    from pipelines.data.preparation.writer import ParallelMap

logger = logging.getLogger(__name__)

CLAIM = "being-prepared.json"
"""Object beside the files to come that holds their settings while they are written."""


def prepare(
    config: DataConfig,
    image_size: int,
    *,
    skip_unreadable: bool = False,
    spread: "ParallelMap | None" = None,
) -> DatasetInfo:
    """Write train.beton, val.beton and test.beton where they are missing.

    Several processes may call it at once. On a disk one writes and the others wait for it; in S3
    each writes the same bytes, and one with other settings is refused. The bytes of the files
    depend neither on `spread` nor on how often a start was stopped.

    Args:
        config: what to write, and where to.
        image_size: height and width that sources without sizes of their own are drawn in.
        skip_unreadable: leave out images that cannot be decoded.
        spread: encodes the images of an image folder in shards, which are kept until the file is
            written, so that another start goes on; without it this process encodes alone.

    Raises:
        UnreadableImageError: names an image that cannot be decoded, unless `skip_unreadable`.
        FileNotFoundError: the source is missing.
        ValueError: the source is not fit to train on, or files of other settings lie there.
        OSError: the files cannot be written.
    """
    place = prepared_path(config, image_size)
    if is_uri(place):
        with ObjectStore() as store:
            _write_to_s3(config, image_size, place, store, skip_unreadable, spread)
        return read_info(config, image_size)
    from pipelines.data.preparation.writer import write_missing

    folder = Path(place)
    if not all(is_prepared(folder, split) for split in SPLITS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"data.prepared_dir is {folder}: it cannot be made ({error.strerror}); name another",
            ) from error
        with _locked(folder):
            present: dict[Split, SplitMetadata] = {
                split: read_metadata(split_path(folder, split))
                for split in SPLITS
                if is_prepared(folder, split)
            }
            for path in write_missing(
                config, image_size, folder, present, place, skip_unreadable, spread
            ):
                logger.info("%s is written", path)
    return read_info(config, image_size)


def _write_to_s3(
    config: DataConfig,
    image_size: int,
    place: str,
    store: ObjectStore,
    skip_unreadable: bool,
    spread: "ParallelMap | None",
) -> None:
    """Write what is missing, while no process with other settings does.

    Processes with the same settings may: they write the same bytes.
    """
    present = _present_in_s3(place, store)
    while len(present) < len(SPLITS):
        _claim(place, config, image_size, store)
        try:
            _upload_missing(config, image_size, place, present, store, skip_unreadable, spread)
        except FileNotFoundError:
            # Another process that writes the same may have been first, and removed the shards.
            if _present_in_s3(place, store).keys() == present.keys():
                raise
        finally:
            store.delete(f"{place}/{CLAIM}")
        present = _present_in_s3(place, store)
        if len(present) == len(SPLITS):
            for name in store.names(place):
                if name.startswith("shards-"):
                    store.delete(f"{place}/{name}")


def _present_in_s3(place: str, store: ObjectStore) -> dict[Split, SplitMetadata]:
    present: dict[Split, SplitMetadata] = {}
    for split in SPLITS:
        with suppress(FileNotFoundError):
            present[split] = read_remote_metadata(f"{place}/{split}.beton", store)[0]
    return present


def _claim(place: str, config: DataConfig, image_size: int, store: ObjectStore) -> None:
    """Say in S3 what is about to be written; that also shows, before hours of work, that one may.

    Raises:
        ValueError: something else is being written.
    """
    address = f"{place}/{CLAIM}"
    own = json.dumps(prepared_settings(config, image_size), sort_keys=True).encode()
    while not store.write_new(address, own):
        try:
            found = store.read(address).data
        except FileNotFoundError:  # its owner is done
            continue
        if found != own:
            raise ValueError(
                f"data.prepared_dir is {place}: another process writes there now, with the settings "
                f"{found.decode()}; wait for its end, or delete {address} if it was killed"
            )
        return


def _upload_missing(
    config: DataConfig,
    image_size: int,
    place: str,
    present: dict[Split, SplitMetadata],
    store: ObjectStore,
    skip_unreadable: bool,
    spread: "ParallelMap | None",
) -> None:
    """Write what is missing to a temporary folder, and from there to S3."""
    from pipelines.data.preparation.writer import write_missing

    with tempfile.TemporaryDirectory(prefix="ranet-prepare-") as folder:
        for path in write_missing(
            config, image_size, Path(folder), present, place, skip_unreadable, spread
        ):
            address = f"{place}/{path.name}"
            logger.info("uploading %s: %d bytes", address, path.stat().st_size)
            store.upload(path, address)
            # Last, as it says that the file is whole.
            store.write(f"{address}.json", metadata_path(path).read_bytes())
            path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees when a process dies."""
    lock = FileLock(folder / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("waiting for another process that prepares %s", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def split_source(source: Source, config: DataConfig) -> dict[Split, Images]:
    """The images of each split: validation is held out of the training images."""
    kept, held = hold_out(
        source.train.labels, config.validation_share, config.split_seed, source.class_names
    )
    return {
        "train": Subset(source.train, kept),
        "val": Subset(source.train, held),
        "test": source.test,
    }
