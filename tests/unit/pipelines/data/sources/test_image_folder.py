"""Image folders as a source."""

import numpy as np
import pytest

from pipelines.data.sources.base import read_image, split_source
from pipelines.data.sources.factory import open_source
from tests.support.image_files import (
    folder_config,
    image_folder,
    pixels,
)


def test_image_folder_uses_val_as_test_and_holds_validation_out_of_train(tmp_path):
    config = folder_config(image_folder(tmp_path / "tree"))
    source = open_source(config, 32)
    parts = split_source(source, config)
    assert source.class_names == ("cat", "dog")
    assert parts["train"].labels.tolist() == [0] * 4 + [1] * 4
    assert parts["val"].labels.tolist() == [0] * 2 + [1] * 2
    assert parts["test"].name(3) == "val/dog/001.png"
    assert np.array_equal(read_image(parts["test"], 3).pixels, pixels(1501))


def test_image_folder_is_sorted_by_name(tmp_path):
    source = open_source(folder_config(image_folder(tmp_path / "tree")), 32)
    names = [source.train.name(index) for index in range(12)]
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no root", "no such folder"),
        ("no val", "val does not exist"),
        ("no classes", "is empty: it must contain one folder of images per class"),
        ("empty class", "contains no image"),
        ("other classes", "only val has 'bird'"),
        ("one class", "needs 2 or more classes to tell apart, got 1: 'cat'"),
    ],
)
def test_unusable_image_folder_raises_error_with_reason(tmp_path, damage, message):
    root = tmp_path / "tree"
    if damage == "one class":
        image_folder(root, classes=("cat",))
    elif damage != "no root":
        image_folder(root)
    if damage == "no val":
        (root / "val").rename(root / "test")
    elif damage == "no classes":
        (root / "train").rename(root / "elsewhere")
        (root / "train").mkdir()
    elif damage == "empty class":
        for path in (root / "train" / "dog").iterdir():
            path.rename(path.with_suffix(".txt"))
    elif damage == "other classes":
        (root / "val" / "bird").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_source(folder_config(root), 32)
