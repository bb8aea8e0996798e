"""Parquet files as a source."""

import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from pipelines.data.config import DataConfig
from pipelines.data.sources.base import read_image, split_source
from pipelines.data.sources.factory import open_source
from tests.support.image_files import (
    encoded,
    pixels,
)


def write_parquet(path, labels, classes=None):
    images = [encoded(pixels(seed)) for seed in range(len(labels))]
    labels = pyarrow.array(labels, None if labels else pyarrow.int64())
    table = pyarrow.table({"image": pyarrow.array(images, pyarrow.binary()), "label": labels})
    if classes is not None:
        table = table.replace_schema_metadata({"classes": json.dumps(classes)})
    parquet.write_table(table, path)


def test_parquet_source_has_images_labels_and_class_names_of_its_files(tmp_path):
    write_parquet(tmp_path / "a-train.parquet", [0, 1, 1, 0], ["cat", "dog"])
    write_parquet(tmp_path / "a-test.parquet", [1])
    source = open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)
    assert source.class_names == ("cat", "dog")
    assert source.train.labels.tolist() == [0, 1, 1, 0]
    assert np.array_equal(read_image(source.train, 2).pixels, pixels(2))


def test_parquet_source_without_class_names_uses_numbers(tmp_path):
    write_parquet(tmp_path / "train-train.parquet", [0, 1, 2])
    write_parquet(tmp_path / "train-test.parquet", [1])
    assert open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32).class_names == (
        "0",
        "1",
        "2",
    )


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 2], [0], "a-train.parquet row 2 has label 2, but labels must be 0 to 1"),
        ([0, -1], [0], "a-train.parquet row 1 has label -1"),
        ([0, 1], [0, 7], "a-test.parquet row 1 has label 7"),
        ([0.5, 1.0], [0], "labels must be integers"),
        ([0, None], [0], "no label may be null"),
        ([], [0], "contains no images"),
    ],
)
def test_invalid_parquet_label_raises_error_with_its_row(tmp_path, train, test, message):
    write_parquet(tmp_path / "a-train.parquet", train, ["cat", "dog"])
    write_parquet(tmp_path / "a-test.parquet", test)
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)


def test_two_parquet_files_for_one_part_are_named_in_error(tmp_path):
    for name in ("a-train", "b-train", "a-test"):
        write_parquet(tmp_path / f"{name}.parquet", [0, 1])
    with pytest.raises(FileNotFoundError, match=r"found a-train.parquet, b-train.parquet"):
        open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)


def test_missing_parquet_column_is_named_in_error(tmp_path):
    for part in ("train", "test"):
        parquet.write_table(
            pyarrow.table({"img": [b""], "label": [0]}), tmp_path / f"a-{part}.parquet"
        )
    with pytest.raises(ValueError, match=r"no column 'image'; its columns are img, label"):
        open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)


def test_real_cifar10_splits_are_balanced_over_classes(shared_data):
    config = DataConfig(source="parquet", source_dir=str(shared_data))
    source = open_source(config, 32)
    parts = split_source(source, config)
    counts = {split: np.bincount(images.labels).tolist() for split, images in parts.items()}
    assert counts == {"train": [4500] * 10, "val": [500] * 10, "test": [1000] * 10}
    assert source.class_names[3] == "cat"
    assert read_image(parts["val"], 0).pixels.shape == (32, 32, 3)
