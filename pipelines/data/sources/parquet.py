"""Parquet files of encoded images and labels."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipelines.data.config import DataConfig
from pipelines.data.sources.base import EncodedImages, Source, existing_folder

if TYPE_CHECKING:
    import pyarrow


def check_parquet(config: DataConfig) -> None:
    """Check that `data.source_dir` has one file per part.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: `data.source_dir` is empty.
    """
    for part in ("train", "test"):
        _parquet_file(existing_folder(config.source_dir), part)


def open_parquet(config: DataConfig, image_size: int) -> Source:
    """Read the images and labels of the training and the test file.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a column is missing, or a label is out of range.
    """
    del image_size
    root = existing_folder(config.source_dir)
    from pyarrow import parquet

    tables = {}
    for part in ("train", "test"):
        found = _parquet_file(root, part)
        columns = parquet.read_schema(found).names
        for column in ("image", "label"):
            if column not in columns:
                raise ValueError(
                    f"{found} has no column {column!r}; its columns are {', '.join(columns)}"
                )
        tables[part] = (found, parquet.read_table(found, columns=["image", "label"]))
    metadata = tables["train"][1].schema.metadata or {}
    train, test = (_encoded_images(path, table) for path, table in tables.values())
    if b"classes" in metadata:
        class_names = tuple(str(name) for name in json.loads(metadata[b"classes"]))
    else:
        class_names = tuple(str(label) for label in range(int(train.labels.max()) + 1))
    for images in (train, test):
        outside = np.flatnonzero((images.labels < 0) | (images.labels >= len(class_names)))
        if len(outside):
            raise ValueError(
                f"{images.name(int(outside[0]))} has label {images.labels[outside[0]]}, "
                f"but labels must be 0 to {len(class_names) - 1}, one per class of the training set"
            )
    return Source(train, test, class_names)


def _parquet_file(root: Path, part: str) -> Path:
    found = sorted(root.glob(f"*-{part}.parquet"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"data.source_dir {root} must contain exactly one *-{part}.parquet, found "
            + (", ".join(path.name for path in found) or "none")
        )
    return found[0]


def _encoded_images(path: Path, table: "pyarrow.Table") -> EncodedImages:
    from pyarrow import types

    image, label = table["image"], table["label"]
    if not (types.is_binary(image.type) or types.is_large_binary(image.type)):
        raise ValueError(
            f"{path}: column image must contain bytes of image files, but is {image.type}"
        )
    if not types.is_integer(label.type) or label.null_count or image.null_count:
        raise ValueError(f"{path}: labels must be integers, and no image or label may be null")
    if not len(table):
        raise ValueError(f"{path} contains no images")
    return EncodedImages(path.name, image.to_pylist(), label.to_numpy().astype(np.int64))
