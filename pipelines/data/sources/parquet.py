"""Parquet files of encoded images and labels."""

import filecmp
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.data.config import DataConfig
from pipelines.data.sources.base import FileCounts, Source, existing_folder
from pipelines.data.sources.files import kind_problem, nfc
from pipelines.data.sources.images import DecodedImage, decode_image

if TYPE_CHECKING:
    import pyarrow

LISTED_LABELS = 10
"""Number of labels in a message."""
_LFS = b"version https://git-lfs"
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class ParquetImages:
    """Encoded images in a parquet file, read when first needed."""

    path: Path
    labels: np.ndarray
    max_pixels: int

    def name(self, index: int) -> str:
        """Return the file's name and the row."""
        return f"{self.path.name} row {index}"

    def file_size(self, index: int) -> int:
        """Return the bytes of the parquet file."""
        del index
        return self._status[0]

    def stamp(self, index: int) -> str:
        """Return the parquet file's time of change."""
        del index
        return self._status[1]

    def content(self, index: int) -> bytes:
        """Return one encoded image; empty if it is null."""
        return self._encoded[index] or b""

    def decode(self, index: int, content: bytes | np.ndarray) -> DecodedImage:
        """Decode one image."""
        assert isinstance(content, bytes)
        return decode_image(content, self.name(index), self.max_pixels)

    @cached_property
    def _status(self) -> tuple[int, str]:
        status = self.path.stat()
        return status.st_size, str(status.st_mtime_ns)

    @cached_property
    def _encoded(self) -> list[bytes | None]:
        from pyarrow import parquet

        return parquet.read_table(self.path, columns=["image"])["image"].to_pylist()


def open_parquet(config: DataConfig, image_size: int) -> Source:
    """Read the labels of the training and the test file.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a file is not a parquet file, a column is missing, labels and class names do
            not fit, or both files are the same.
    """
    del image_size
    root = existing_folder(config.source_dir)
    paths = [_parquet_file(root, part) for part in ("train", "test")]
    (train, names), (test, test_names) = (_read_labels(path) for path in paths)
    if len({path.stat().st_size for path in paths}) == 1 and filecmp.cmp(*paths, shallow=False):
        raise ValueError(
            f"{paths[0]} and {paths[1]} have the same content, so that the test images would be "
            "the training images; put other images into the test file"
        )
    if test_names is not None:
        test = _renumber(paths[1], test, test_names, names)
    if names is None:
        _check_consecutive(paths[0], train)
        names = tuple(str(label) for label in range(int(train.max()) + 1))
    for path, labels in zip(paths, (train, test), strict=True):
        outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(outside):
            raise ValueError(
                f"{path.name} row {outside[0]} has label {labels[outside[0]]}, "
                f"but labels must be 0 to {len(names) - 1}, one per class of the training set"
            )
    return Source(
        ParquetImages(paths[0], train, config.max_pixels),
        ParquetImages(paths[1], test, config.max_pixels),
        names,
        FileCounts(len(train) + len(test)),
    )


def _parquet_file(root: Path, part: str) -> Path:
    found = sorted(root.glob(f"*-{part}.parquet"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"data.source_dir {root} must contain exactly one *-{part}.parquet, found "
            + (", ".join(path.name for path in found) or "none")
        )
    [path] = found
    try:
        if problem := kind_problem(path.stat().st_mode):
            raise ValueError(f"{path} is {problem}, not a parquet file; put the file there")
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        target = f" (a link to {path.readlink()})" if path.is_symlink() else ""
        raise ValueError(f"{path}{target} cannot be read: {error.strerror}") from error
    if start == _LFS:
        raise ValueError(f"{path} is a Git LFS pointer, not a parquet file; run git lfs pull")
    if not start.startswith(_MAGIC):
        raise ValueError(f"{path} is not a parquet file; copy or download it again")
    return path


def _read_labels(path: Path) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return the labels and, if present, the class names of a file."""
    import pyarrow
    from pyarrow import parquet, types

    try:
        schema = parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is damaged, its columns cannot be read; copy or download it again"
        ) from error
    for column in ("image", "label"):
        if column not in schema.names:
            raise ValueError(
                f"{path} has no column {column!r}; its columns are {', '.join(schema.names)}"
            )
    kind = schema.field("image").type
    if not (types.is_binary(kind) or types.is_large_binary(kind)):
        raise ValueError(f"{path}: column image must contain bytes of image files, but is {kind}")
    table = parquet.read_table(path, columns=["label"])
    label = table["label"]
    if not types.is_integer(label.type) or label.null_count:
        raise ValueError(f"{path}: labels must be integers, and no label may be null")
    if not len(table):
        raise ValueError(f"{path} contains no images")
    return label.to_numpy().astype(np.int64), _class_names(schema)


def _class_names(schema: "pyarrow.Schema") -> tuple[str, ...] | None:
    """Return the class names in `classes` or in Hugging Face's ClassLabel."""
    metadata = schema.metadata or {}
    if b"classes" in metadata:
        return tuple(nfc(str(name)) for name in json.loads(metadata[b"classes"]))
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get("label", {}).get("names")
    return tuple(nfc(str(name)) for name in names) if names else None


def _renumber(
    path: Path, labels: np.ndarray, names: Sequence[str], train_names: Sequence[str] | None
) -> np.ndarray:
    """Return the test labels in the training file's order of classes."""
    if train_names is None or not set(names) <= set(train_names):
        raise ValueError(
            f"{path} has the classes {list(names)}, but the training file has "
            f"{'no class names' if train_names is None else list(train_names)}; both files must "
            "name the same classes"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(names)):
        return labels  # out of range, which the caller reports with the row
    return np.array([train_names.index(name) for name in names], np.int64)[labels]


def _check_consecutive(path: Path, labels: np.ndarray) -> None:
    """Check that labels without class names have no gaps."""
    found = np.unique(labels)
    if found[0] < 0 or len(found) != found[-1] + 1:
        some = ", ".join(str(label) for label in found[:LISTED_LABELS])
        raise ValueError(
            f"{path} has the labels {some}{', ...' if len(found) > LISTED_LABELS else ''}, but "
            "labels must be 0 to n-1 without gaps; renumber them, or store the class names as JSON "
            "in the metadata of the schema under the key classes"
        )
