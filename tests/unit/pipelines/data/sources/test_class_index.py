"""Class names from a file."""

import numpy as np
import pytest

from pipelines.data.sources.base import split_source
from pipelines.data.sources.class_index import read_class_index
from pipelines.data.sources.factory import open_source
from tests.support.image_files import (
    folder_config,
    image_folder,
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.txt", "bird\ncat\n\ndog\nfish\n"),
        ("index.json", '["bird", "cat", "dog", "fish"]'),
        ("index.json", '{"0": ["bird", "x"], "1": ["cat"], "3": ["fish"], "2": ["dog"]}'),
    ],
)
def test_class_index_determines_labels_of_class_folders(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    config = folder_config(image_folder(tmp_path / "tree"), class_index=str(tmp_path / name))
    source = open_source(config, 32)
    assert source.class_names == ("bird", "cat", "dog", "fish")
    assert source.test.labels.tolist() == [1, 1, 2, 2]
    parts = split_source(source, config)
    assert np.bincount(parts["val"].labels, minlength=4).tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("index.txt", "cat\nbird\n", r"1 class folders that are not in .*index.txt: 'dog'"),
        ("index.txt", "cat\ndog\ncat\n", r"every name once, but contains 'cat' twice"),
        ("index.txt", "", r"every name once, but contains no name"),
        ("index.json", '{"cat": 0}', r"1 class folders that are not in .*index.json: 'dog'"),
        ("index.json", '{"cat": "x"}', r"is not a list of names: the labels must be 0 to 0"),
        ("index.json", "[1, 2]", r"must be a list of names in label order"),
        ("index.json", "cat", r"is not a list of names: Expecting value"),
    ],
)
def test_class_index_with_wrong_content_raises_error(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    config = folder_config(image_folder(tmp_path / "tree"), class_index=str(tmp_path / name))
    with pytest.raises(ValueError, match=message):
        open_source(config, 32)


def test_missing_class_index_is_named_in_error(tmp_path):
    config = folder_config(image_folder(tmp_path / "tree"), class_index="no.txt")
    with pytest.raises(FileNotFoundError, match=r"data.class_index is no.txt: no such file"):
        open_source(config, 32)


def test_imagenet_class_index_has_1000_names_in_order():
    names = read_class_index("configs/imagenet_classes.txt")
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert names[:2] == ("n01440764", "n01443537")
