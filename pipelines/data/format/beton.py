"""FFCV's file format (.beton), written and opened by ourselves.

The layout and the encoding are FFCV's own, so its `Loader` reads our files too. Its
`DatasetWriter` waits for ever when one of its processes fails; see docs/decisions/003-data.md.
"""

import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cluster.progress import Progress
from pipelines.data.config import DataConfig
from pipelines.data.format.encoding import FIELDS, METADATA_TYPE, PAGE_BYTES, Sample, encode
from pipelines.data.format.ffcv_internals import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    FieldDescType,
    HeaderType,
    Reader,
)
from pipelines.data.sources.factory import Images
from pipelines.data.sources.images import UnreadableImageError

METADATA_START = HeaderType.itemsize + len(FIELDS) * FieldDescType.itemsize


@dataclass(frozen=True)
class Written:
    """What went into a file."""

    labels: np.ndarray
    """Class of every image (images,), int64."""
    sizes: np.ndarray
    """Stored height and width of every image (images, 2)."""
    skipped: tuple[str, ...]
    """What is wrong with each unreadable image that was left out."""


@dataclass(frozen=True)
class Beton:
    """An open file: where each image lies and what it shows."""

    path: Path
    table: np.ndarray
    """Start and length in bytes, height, width, is JPEG (0 or 1): (images, 5), int64."""
    labels: np.ndarray
    """Class of every image (images,), int64."""
    data: np.ndarray
    """The file's bytes, mapped into memory."""

    def __len__(self) -> int:
        """Images in the file."""
        return len(self.labels)

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of every image (images, 2)."""
        return self.table[:, 2:4]


def write_beton(
    path: Path, images: Images, config: DataConfig, *, skip_unreadable: bool = False
) -> Written:
    """Write images in their order; several threads encode, this one writes.

    Raises:
        UnreadableImageError: an image cannot be decoded and `skip_unreadable` is not set.
        OSError: the file cannot be written, for instance because the disk is full.
    """
    total = len(images.labels)
    threads = len(os.sched_getaffinity(0))
    with (
        closing(encode(images, config, threads)) as samples,
        Progress(f"writing {path.name}", total) as progress,
    ):
        counted = progress.counted(samples)
        return write_samples(path, total, counted, skip_unreadable=skip_unreadable)


def write_samples(
    path: Path,
    total: int,
    samples: Iterable[Sample | UnreadableImageError],
    *,
    skip_unreadable: bool = False,
) -> Written:
    """Write encoded images in their order.

    The bytes depend on the samples alone, not on who encoded them or in how many pieces.

    Args:
        path: the file.
        total: how many samples there will be, unreadable ones included.
        samples: what to write.
        skip_unreadable: leave out unreadable images instead of raising the first.

    Raises:
        UnreadableImageError: an image is unreadable and `skip_unreadable` is not set.
        OSError: the file cannot be written.
    """
    metadata = np.zeros(total, METADATA_TYPE)
    allocations: list[tuple[int, int, int]] = []
    skipped: list[str] = []
    position = _page_up(METADATA_START + metadata.nbytes)
    with path.open("wb") as file:
        file.seek(position)
        for sample in samples:
            if isinstance(sample, UnreadableImageError):
                if not skip_unreadable:
                    raise with_advice(sample)
                skipped.append(str(sample))
                continue
            length = sample.data.nbytes
            if position % PAGE_BYTES + length > PAGE_BYTES:
                position = _page_up(position)
                file.seek(position)
            number = len(allocations)
            metadata[number] = sample.record[0]
            metadata[number]["f0"]["data_ptr"] = position
            allocations.append((number, position, length))
            position += file.write(sample.data.data)
        if not allocations:
            raise ValueError(f"{path}: not one of {total} images can be read")
        position = _page_up(position)
        file.seek(position)
        file.write(np.array(allocations, ALLOC_TABLE_TYPE).tobytes())
        _write_head(file, metadata, len(allocations), position)
        file.flush()
        os.fsync(file.fileno())
    metadata = metadata[: len(allocations)]
    sizes = np.stack([metadata["f0"]["height"], metadata["f0"]["width"]], axis=1)
    return Written(metadata["f1"], sizes.astype(np.int64), tuple(skipped))


def with_advice(error: UnreadableImageError) -> UnreadableImageError:
    """The same error, with what can be done."""
    return UnreadableImageError(
        f"{error}; repair or remove it, or leave out all such images with "
        "pipelines/prepare_data.py --skip-unreadable"
    )


def _page_up(position: int) -> int:
    return -(-position // PAGE_BYTES) * PAGE_BYTES


def _write_head(file: BinaryIO, metadata: np.ndarray, num_samples: int, table_start: int) -> None:
    """Write the header last: a file without it is recognised as unfinished."""
    header = np.zeros(1, HeaderType)
    header["version"] = CURRENT_VERSION
    header["num_fields"] = len(FIELDS)
    header["page_size"] = PAGE_BYTES
    header["num_samples"] = num_samples
    header["alloc_table_ptr"] = table_start
    type_ids = {handler: type_id for type_id, handler in TYPE_ID_HANDLER.items()}
    descriptors = np.zeros(len(FIELDS), FieldDescType)
    for descriptor, (name, field) in zip(descriptors, FIELDS, strict=True):
        descriptor["type_id"] = type_ids[field]
        descriptor["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    file.seek(HeaderType.itemsize)
    file.write(descriptors.tobytes())
    file.write(metadata.tobytes())
    file.flush()
    file.seek(0)
    file.write(header.tobytes())


def open_beton(path: Path) -> Beton:
    """Open a file after checking that it is whole and of our fields.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is unfinished, truncated, not FFCV's, or has other fields.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run pipelines/prepare_data.py")
    size = path.stat().st_size
    if size < METADATA_START:
        raise ValueError(f"{path} is no FFCV file: {size} bytes are too few; prepare it anew")
    header = np.fromfile(path, HeaderType, count=1)[0]
    page = int(header["page_size"])
    # All that a killed writer may leave begins with zeros: ours writes its header last.
    if not any(header.tobytes()) or (
        header["version"] == CURRENT_VERSION and header["alloc_table_ptr"] == 0
    ):
        raise ValueError(f"{path} is unfinished: its writer was stopped; prepare it anew")
    if header["version"] != CURRENT_VERSION or page < 1 or page & (page - 1):
        raise ValueError(f"{path} is no FFCV file of version {CURRENT_VERSION}; prepare it anew")
    if header["num_fields"] != len(FIELDS):
        raise ValueError(_wrong_fields(path, f"it has {header['num_fields']}"))
    descriptors = np.fromfile(path, FieldDescType, count=len(FIELDS), offset=HeaderType.itemsize)
    found = [
        (bytes(entry["name"]).rstrip(b"\0").decode("ascii", "replace"), int(entry["type_id"]))
        for entry in descriptors
    ]
    handlers = [(name, TYPE_ID_HANDLER.get(type_id)) for name, type_id in found]
    if handlers != list(FIELDS):
        named = ", ".join(
            f"{name} ({getattr(handler, '__name__', 'unknown')})" for name, handler in handlers
        )
        raise ValueError(_wrong_fields(path, f"it has {named}"))
    num_samples, table_start = int(header["num_samples"]), int(header["alloc_table_ptr"])
    needed = max(
        METADATA_START + num_samples * METADATA_TYPE.itemsize,
        table_start + num_samples * ALLOC_TABLE_TYPE.itemsize,
    )
    if size < needed:
        raise ValueError(
            f"{path} is truncated: {size} bytes, but its {num_samples} images need {needed}; "
            "copy or prepare it anew"
        )
    reader = Reader(path)
    image = reader.metadata["f0"]
    order = np.argsort(reader.alloc_table["ptr"])
    starts, lengths = (reader.alloc_table[name][order] for name in ("ptr", "size"))
    places = np.searchsorted(starts, image["data_ptr"])
    table = np.empty((num_samples, 5), np.int64)
    table[:, 0] = image["data_ptr"]
    table[:, 2], table[:, 3], table[:, 4] = image["height"], image["width"], image["mode"] == 0
    whole = num_samples > 0 and len(starts) == num_samples and places.max() < num_samples
    if whole:
        table[:, 1] = lengths[places]
        whole = (
            np.array_equal(starts[places], image["data_ptr"])
            and (table[:, :4] > 0).all()
            and (table[:, 0] + table[:, 1]).max() <= table_start
            and ((table[:, 1] == 3 * table[:, 2] * table[:, 3]) | (table[:, 4] == 1)).all()
        )
    if not whole:
        raise ValueError(f"{path} is damaged: its tables do not agree; copy or prepare it anew")
    labels = reader.metadata["f1"].astype(np.int64)
    return Beton(path, table, labels, np.memmap(path, np.uint8, mode="r"))


def _wrong_fields(path: Path, found: str) -> str:
    wanted = ", ".join(f"{name} ({field.__name__})" for name, field in FIELDS)
    return f"{path} must have the fields {wanted}, but {found}; prepare it anew"
