"""Writing the three files of a data set, once."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cluster.objects import is_address
from pipelines.data.config import (
    SPLITS,
    DataConfig,
    Split,
    prepared_folder,
    prepared_settings,
)
from pipelines.data.sidecar import (
    FORMAT,
    DatasetInfo,
    Sidecar,
    check_settings,
    file_sha256,
    is_prepared,
    read_info,
    read_sidecar,
    sidecar_path,
    split_path,
    write_sidecar,
)
from pipelines.data.sources import Images, Source, Subset, open_source
from pipelines.data.splits import hold_out

logger = logging.getLogger(__name__)


def prepare(config: DataConfig, image_size: int, *, skip_unreadable: bool = False) -> DatasetInfo:
    """Write train.beton, val.beton and test.beton where they are missing.

    Several processes may call it at once: one writes, the others wait for it.

    Raises:
        UnreadableImageError: names an image that cannot be decoded, unless `skip_unreadable`.
        FileNotFoundError: the source is missing.
        ValueError: the source is not fit to train on, or files of other settings lie there.
        OSError: the files cannot be written.
    """
    if is_address(config.folder):
        return read_info(config, image_size)
    folder = Path(prepared_folder(config, image_size))
    if not all(is_prepared(folder, split) for split in SPLITS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"data.folder is {folder}: it cannot be made ({error.strerror}); name another",
            ) from error
        with _locked(folder):
            _write_missing(config, image_size, folder, skip_unreadable)
    return read_info(config, image_size)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees when a process dies."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that prepares %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_missing(
    config: DataConfig, image_size: int, folder: Path, skip_unreadable: bool
) -> None:
    settings = prepared_settings(config, image_size)
    present: dict[Split, Sidecar] = {}
    for split in SPLITS:
        if is_prepared(folder, split):
            present[split] = read_sidecar(split_path(folder, split))
            check_settings(str(folder), present[split], split, settings)
    missing: list[Split] = [split for split in SPLITS if split not in present]
    if not missing:
        return
    source = open_source(config, image_size)
    for split, sidecar in present.items():
        if sidecar.source_sha256 != source.fingerprint:
            raise ValueError(
                f"{split_path(folder, split)} was prepared from other images than the source holds "
                f"now; delete {folder}/*.beton* to prepare all splits anew"
            )
    parts = split_source(source, config)
    for split in missing:
        _write_split(folder, split, parts[split], source, config, settings, skip_unreadable)


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


def _write_split(
    folder: Path,
    split: Split,
    images: Images,
    source: Source,
    config: DataConfig,
    settings: dict[str, str | int | float],
    skip_unreadable: bool,
) -> None:
    from pipelines.data.beton import write_beton

    path = split_path(folder, split)
    sidecar_path(path).unlink(missing_ok=True)
    part = path.with_name(f"{path.name}.part")
    logger.info("writing %s: %d images", path, len(images.labels))
    try:
        written = write_beton(part, images, config, skip_unreadable=skip_unreadable)
        sidecar = Sidecar(
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
        part.replace(path)
        write_sidecar(path, sidecar)
    except OSError as error:
        if error.filename is not None:  # it says itself which file: an image that is not there
            raise
        raise OSError(
            error.errno,
            f"{path} cannot be written: {error.strerror}; free disk space or set data.folder",
        ) from error
    finally:
        part.unlink(missing_ok=True)
    if written.skipped:
        logger.warning(
            "%s: %d unreadable images left out: %s",
            path,
            len(written.skipped),
            "; ".join(written.skipped[:20]),
        )


def _range(values: np.ndarray) -> tuple[int, int]:
    return int(values.min()), int(values.max())
