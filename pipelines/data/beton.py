"""FFCV's file format (.beton), written and opened by ourselves.

The layout and the encoding are FFCV's own, so its `Loader` reads our files too. Its
`DatasetWriter` waits for ever when one of its processes fails; see docs/decisions/003-data.md.
"""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.reader import Reader
from ffcv.types import (
    ALLOC_TABLE_TYPE,
    CURRENT_VERSION,
    TYPE_ID_HANDLER,
    FieldDescType,
    HeaderType,
    get_metadata_type,
)
from tqdm import tqdm

from pipelines.data.config import DataConfig
from pipelines.data.images import UnreadableImageError
from pipelines.data.sources import Images

logger = logging.getLogger(__name__)

PAGE_BYTES = 1 << 23
"""A sample never crosses a page, so that FFCV can cache the file page by page."""
LOG_SECONDS = 30
FIELDS = (("image", RGBImageField), ("label", IntField))
METADATA_TYPE = get_metadata_type([RGBImageField(), IntField()])
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
    """Write images in their order; several threads decode, this one writes.

    Raises:
        UnreadableImageError: an image cannot be decoded and `skip_unreadable` is not set.
        OSError: the file cannot be written, for instance because the disk is full.
    """
    field = RGBImageField(
        write_mode="jpg" if config.storage == "jpeg" else "raw",
        max_resolution=config.stored_size or None,  # pyright: ignore[reportArgumentType]
        jpeg_quality=config.jpeg_quality,
    )
    labels = images.labels
    metadata = np.zeros(len(labels), METADATA_TYPE)
    allocations: list[tuple[int, int, int]] = []
    skipped: list[str] = []
    position = _page_up(METADATA_START + metadata.nbytes)
    with path.open("wb") as file, closing(_encoded(images, field)) as encoded_images:
        file.seek(position)
        for index, encoded in encoded_images:
            try:
                record, pixels = encoded.result()
            except UnreadableImageError as error:
                if not skip_unreadable:
                    raise UnreadableImageError(
                        f"{error}; repair or remove it, or leave out all such images with "
                        "pipelines/prepare_data.py --skip-unreadable"
                    ) from error
                skipped.append(str(error))
                continue
            if pixels.nbytes > PAGE_BYTES:
                raise ValueError(
                    f"{images.name(index)} takes {pixels.nbytes} bytes as {config.storage}, more "
                    f"than FFCV's page of {PAGE_BYTES}: set data.stored_size, or data.storage: jpeg"
                )
            if position % PAGE_BYTES + pixels.nbytes > PAGE_BYTES:
                position = _page_up(position)
                file.seek(position)
            sample = len(allocations)
            metadata[sample] = (record, labels[index])
            metadata[sample]["f0"]["data_ptr"] = position
            allocations.append((sample, position, pixels.nbytes))
            position += file.write(pixels.data)
        if not allocations:
            raise ValueError(f"{path}: not one of {len(labels)} images can be read")
        position = _page_up(position)
        file.seek(position)
        file.write(np.array(allocations, ALLOC_TABLE_TYPE).tobytes())
        _write_head(file, metadata, len(allocations), position)
        file.flush()
        os.fsync(file.fileno())
    metadata = metadata[: len(allocations)]
    sizes = np.stack([metadata["f0"]["height"], metadata["f0"]["width"]], axis=1)
    return Written(metadata["f1"], sizes.astype(np.int64), tuple(skipped))


def _page_up(position: int) -> int:
    return -(-position // PAGE_BYTES) * PAGE_BYTES


def _encoded(
    images: Images, field: RGBImageField
) -> Generator[tuple[int, "Future[tuple[np.void, np.ndarray]]"]]:
    """Encode images in threads and give them in order, a bounded number ahead."""

    def encode(index: int) -> tuple[np.void, np.ndarray]:
        record = np.zeros(1, METADATA_TYPE)["f0"]
        buffers: list[np.ndarray] = []

        def allocate(size: int) -> tuple[int, np.ndarray]:
            buffers.append(np.empty(size, np.uint8))
            return 0, buffers[-1]  # its place in the file is known only when it is written

        pixels = images.read(index)
        try:
            field.encode(record, pixels, allocate)
        except Exception as error:  # OpenCV's own: no size left after shrinking, or over 65,535
            raise UnreadableImageError(
                f"{images.name(index)} of {pixels.shape[1]}x{pixels.shape[0]} pixels cannot be "
                f"stored: {error}"
            ) from error
        return record[0], buffers[0]

    threads = len(os.sched_getaffinity(0))
    total = len(images.labels)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
    waiting: deque[Future[tuple[np.void, np.ndarray]]] = deque()
    submitted = 0
    try:
        for index in _with_progress(total):
            while submitted < min(total, index + 4 * threads):
                waiting.append(pool.submit(encode, submitted))
                submitted += 1
            encoded = waiting.popleft()
            encoded.exception()  # wait here, where the progress is shown
            yield index, encoded
    finally:
        pool.shutdown(cancel_futures=True)


def _with_progress(total: int) -> Iterator[int]:
    """Count to `total` under a progress bar, or with a line in the log now and then."""
    if sys.stderr.isatty():
        yield from tqdm(range(total), unit="image", smoothing=0)
        return
    last = time.monotonic()
    for index in range(total):
        yield index
        if time.monotonic() - last > LOG_SECONDS:
            last = time.monotonic()
            logger.info("%d of %d images", index + 1, total)


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
