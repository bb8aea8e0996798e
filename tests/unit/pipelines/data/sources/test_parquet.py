"""Parquet files as a source."""

import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from pipelines.data.config import DataConfig
from pipelines.data.sources.base import read_image, split_source
from pipelines.data.sources.factory import open_source
from pipelines.data.sources.images import UnreadableImageError
from tests.support.image_files import (
    encoded,
    pixels,
)


def write_parquet(path, labels, classes=None, seed=0):
    images = [encoded(pixels(seed + row)) for row in range(len(labels))]
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


def hugging_face(names):
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


@pytest.mark.parametrize("form", ["classes", "huggingface"])
def test_test_labels_follow_the_training_files_order_of_classes(tmp_path, form):
    for part, names in (("train", ["cat", "dog", "owl"]), ("test", ["dog", "cat", "owl"])):
        path = tmp_path / f"a-{part}.parquet"
        write_parquet(path, [0, 1, 2, 0, 1, 2], names, seed=9 * len(part))
        if form == "huggingface":
            table = parquet.read_table(path).replace_schema_metadata(hugging_face(names))
            parquet.write_table(table, path)
    source = open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)
    assert source.class_names == ("cat", "dog", "owl")
    assert source.test.labels.tolist() == [1, 0, 2, 1, 0, 2]


@pytest.mark.parametrize(
    ("train", "classes", "test_classes", "message"),
    [
        ([1, 2, 1], None, None, "has the labels 1, 2, but labels must be 0 to n-1 without gaps"),
        ([0, 500], None, None, "has the labels 0, 500, but"),
        ([0, 1], ["cat", "dog"], ["cat", "cow"], "both files must name the same classes"),
        ([0, 1], None, ["cat", "dog"], "the training file has no class names"),
    ],
)
def test_labels_that_do_not_fit_the_classes_raise_error(
    tmp_path, train, classes, test_classes, message
):
    write_parquet(tmp_path / "a-train.parquet", train, classes)
    write_parquet(tmp_path / "a-test.parquet", [0], test_classes)
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.mkdir(), "is a folder, not a parquet file"),
        (lambda path: path.symlink_to("gone/x"), r"\(a link to gone/x\) cannot be read: No su"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
         "is a Git LFS pointer, not a parquet file; run git lfs pull"),
        (lambda path: path.write_text("<html>"), "is not a parquet file; copy or download it"),
        (lambda path: path.write_bytes(b"PAR1" + bytes(100)), "is damaged, its columns cannot"),
        (lambda path: path.write_bytes(path.with_name("a-train.parquet").read_bytes()),
         "have the same content, so that the test images would be the training images"),
    ],
)  # fmt: skip
def test_file_that_is_no_parquet_file_is_explained(tmp_path, damage, message):
    write_parquet(tmp_path / "a-train.parquet", [0, 1])
    damage(tmp_path / "a-test.parquet")
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)


def test_missing_image_in_a_row_is_unreadable(tmp_path):
    table = pyarrow.table(
        {"image": pyarrow.array([encoded(pixels(0)), None], pyarrow.binary()), "label": [0, 1]}
    )
    parquet.write_table(table, tmp_path / "a-train.parquet")
    write_parquet(tmp_path / "a-test.parquet", [1])
    source = open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)
    with pytest.raises(UnreadableImageError, match=r"a-train.parquet row 1 is not .* is empty"):
        read_image(source.train, 1)
