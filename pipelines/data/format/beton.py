"""Writer and reader of FFCV's file format (.beton).

FFCV's own `Loader` can read the files too. FFCV's `DatasetWriter` is not used because it hangs when
one of its processes fails; see docs/decisions/003-data.md.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cluster.progress import Progress
from pipelines.data.config import DataConfig
from pipelines.data.format.encoding import PAGE_BYTES, Sample, encode
from pipelines.data.format.ffcv_internals import file_format, read_tables
from pipelines.data.format.metadata import rewrite_hint
from pipelines.data.sources.base import Images
from pipelines.data.sources.images import UnreadableImageError

LISTED_ERRORS = 20
"""Number of unreadable images that a message names."""


@dataclass(frozen=True)
class Written:
    """Content of a file that was written."""

    labels: np.ndarray
    """Class of every image (images,), int64."""
    sizes: np.ndarray
    """Stored height and width of every image (images, 2)."""
    skipped: tuple[str, ...]
    """Error message of each unreadable image that was skipped."""
    numbers: np.ndarray
    """Number of every image among all images, including skipped ones (images,)."""
    digests: np.ndarray
    """Hash of every image's content in the source (images, 16), uint8."""
    moments: np.ndarray
    """Mean over the images of `Sample.moments` (6,)."""


@dataclass(frozen=True)
class Beton:
    """Open file: location, size and label of every image."""

    path: Path
    table: np.ndarray
    """Offset and length in bytes, height, width, is JPEG (0 or 1): (images, 5), int64."""
    labels: np.ndarray
    """Class of every image (images,), int64."""
    data: np.ndarray
    """Memory-mapped bytes of the file."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @property
    def sizes(self) -> np.ndarray:
        """Height and width of every image (images, 2)."""
        return self.table[:, 2:4]


def write_beton(
    path: Path, images: Images, config: DataConfig, *, skip_unreadable: bool = False
) -> Written:
    """Encode images in several threads and write them in order.

    Raises:
        UnreadableImageError: an image cannot be decoded and `skip_unreadable` is not set.
        OSError: the file cannot be written, for instance because the disk is full.
    """
    total = len(images.labels)
    threads = len(os.sched_getaffinity(0))
    with (
        closing(encode(images, config, threads=threads, decoders=threads)) as samples,
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
    """Write encoded images in order.

    The bytes depend only on the samples, not on the processes or shards that encoded them.

    Args:
        path: the file.
        total: number of samples, including unreadable ones.
        samples: encoded images, or the errors of unreadable ones.
        skip_unreadable: skip unreadable images instead of raising an error that names them.

    Raises:
        UnreadableImageError: an image is unreadable and `skip_unreadable` is not set.
        OSError: the file cannot be written.
    """
    layout = file_format()
    metadata = np.zeros(total, layout.metadata)
    allocations: list[tuple[int, int, int]] = []
    skipped: list[str] = []
    digests, numbers, moments = [], [], np.zeros(6)
    position = _page_up(layout.metadata_start + metadata.nbytes)
    with path.open("wb") as file:
        file.seek(position)
        for index, sample in enumerate(samples):
            if isinstance(sample, UnreadableImageError):
                skipped.append(str(sample))
                continue
            length, number = sample.data.nbytes, len(allocations)
            if position % PAGE_BYTES + length > PAGE_BYTES:
                position = _page_up(position)
                file.seek(position)
            metadata[number] = sample.record[0]
            metadata[number]["f0"]["data_ptr"] = position
            allocations.append((number, position, length))
            position += file.write(sample.data.data)
            digests.append(np.frombuffer(sample.digest, np.uint8))
            numbers.append(index)
            moments += sample.moments
        if skipped and not skip_unreadable:
            raise unreadable_error(skipped)
        if not allocations:
            raise ValueError(f"{path}: none of the {total} images can be read ({skipped[0]})")
        _write_tables(file, metadata, allocations, _page_up(position))
    metadata = metadata[: len(allocations)]
    sizes = np.stack([metadata["f0"]["height"], metadata["f0"]["width"]], axis=1)
    return Written(
        metadata["f1"],
        sizes.astype(np.int64),
        tuple(skipped),
        np.array(numbers),
        np.stack(digests),
        moments / len(digests),
    )


def unreadable_error(sentences: Sequence[str]) -> UnreadableImageError:
    """Return an error that names all unreadable images and the possible remedies."""
    named = "; ".join(sentences[:LISTED_ERRORS])
    if len(sentences) > LISTED_ERRORS:
        named += f"; and {len(sentences) - LISTED_ERRORS} more"
    them = "it" if len(sentences) == 1 else f"these {len(sentences)} files"
    return UnreadableImageError(
        f"{named}; repair or remove {them}, or skip all unreadable images with "
        "pipelines/prepare_data.py --skip-unreadable"
    )


def _page_up(position: int) -> int:
    return -(-position // PAGE_BYTES) * PAGE_BYTES


def _write_tables(
    file: BinaryIO, metadata: np.ndarray, allocations: list[tuple[int, int, int]], start: int
) -> None:
    """Write the allocation table from an offset on, and complete the file."""
    file.seek(start)
    file.write(np.array(allocations, file_format().allocation).tobytes())
    _write_head(file, metadata, len(allocations), start)
    file.flush()
    os.fsync(file.fileno())


def _write_head(file: BinaryIO, metadata: np.ndarray, num_samples: int, table_start: int) -> None:
    """Write the metadata, then the header, which marks a complete file."""
    layout = file_format()
    header = np.zeros(1, layout.header)
    header["version"] = layout.version
    header["num_fields"] = len(layout.fields)
    header["page_size"] = PAGE_BYTES
    header["num_samples"] = num_samples
    header["alloc_table_ptr"] = table_start
    type_ids = {handler: type_id for type_id, handler in layout.type_ids.items()}
    descriptors = np.zeros(len(layout.fields), layout.field_descriptor)
    for descriptor, (name, field) in zip(descriptors, layout.fields, strict=True):
        descriptor["type_id"] = type_ids[field]
        descriptor["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    file.seek(layout.header.itemsize)
    file.write(descriptors.tobytes())
    file.write(metadata.tobytes())
    file.flush()
    file.seek(0)
    file.write(header.tobytes())


def open_beton(path: Path) -> Beton:
    """Open a file and check its completeness and its fields.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is unfinished, truncated, not an FFCV file, or has other fields.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run pipelines/prepare_data.py")
    layout = file_format()
    size = path.stat().st_size
    if size < layout.metadata_start:
        raise ValueError(
            f"{path} is not an FFCV file: {size} bytes are too few; {rewrite_hint(path)}"
        )
    header = np.fromfile(path, layout.header, count=1)[0]
    page = int(header["page_size"])
    # The header is written last, so a file of a killed writer begins with zeros.
    if not any(header.tobytes()) or (
        header["version"] == layout.version and header["alloc_table_ptr"] == 0
    ):
        raise ValueError(f"{path} is unfinished: its writer was stopped; {rewrite_hint(path)}")
    if header["version"] != layout.version or page < 1 or page & (page - 1):
        raise ValueError(
            f"{path} is not an FFCV file of version {layout.version}; {rewrite_hint(path)}"
        )
    if header["num_fields"] != len(layout.fields):
        raise ValueError(_wrong_fields(path, f"it has {header['num_fields']}"))
    descriptors = np.fromfile(
        path, layout.field_descriptor, count=len(layout.fields), offset=layout.header.itemsize
    )
    found = [
        (bytes(entry["name"]).rstrip(b"\0").decode("ascii", "replace"), int(entry["type_id"]))
        for entry in descriptors
    ]
    handlers = [(name, layout.type_ids.get(type_id)) for name, type_id in found]
    if handlers != list(layout.fields):
        named = ", ".join(
            f"{name} ({getattr(handler, '__name__', 'unknown')})" for name, handler in handlers
        )
        raise ValueError(_wrong_fields(path, f"it has {named}"))
    num_samples, table_start = int(header["num_samples"]), int(header["alloc_table_ptr"])
    needed = max(
        layout.metadata_start + num_samples * layout.metadata.itemsize,
        table_start + num_samples * layout.allocation.itemsize,
    )
    if size < needed:
        raise ValueError(
            f"{path} is truncated: {size} bytes, but its {num_samples} images need {needed}; "
            f"{rewrite_hint(path)}"
        )
    return _read_tables(path, num_samples, table_start)


def _read_tables(path: Path, num_samples: int, table_start: int) -> Beton:
    """Read where each image is, after checking that the file's tables agree."""
    metadata, allocations = read_tables(path)
    image = metadata["f0"]
    order = np.argsort(allocations["ptr"])
    starts, lengths = (allocations[name][order] for name in ("ptr", "size"))
    rows = np.searchsorted(starts, image["data_ptr"])
    table = np.empty((num_samples, 5), np.int64)
    table[:, 0] = image["data_ptr"]
    table[:, 2], table[:, 3], table[:, 4] = image["height"], image["width"], image["mode"] == 0
    is_valid = num_samples > 0 and len(starts) == num_samples and rows.max() < num_samples
    if is_valid:
        table[:, 1] = lengths[rows]
        is_valid = (
            np.array_equal(starts[rows], image["data_ptr"])
            and (table[:, :4] > 0).all()
            and (table[:, 0] + table[:, 1]).max() <= table_start
            and ((table[:, 1] == 3 * table[:, 2] * table[:, 3]) | (table[:, 4] == 1)).all()
        )
    if not is_valid:
        raise ValueError(f"{path} is damaged: its tables are inconsistent; {rewrite_hint(path)}")
    labels = metadata["f1"].astype(np.int64)
    return Beton(path, table, labels, np.memmap(path, np.uint8, mode="r"))


def _wrong_fields(path: Path, found: str) -> str:
    wanted = ", ".join(f"{name} ({field.__name__})" for name, field in file_format().fields)
    return f"{path} must have the fields {wanted}, but {found}; {rewrite_hint(path)}"
