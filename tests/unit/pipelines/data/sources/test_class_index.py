"""Class names from a file."""

import numpy as np
import pytest

from pipelines.data.sources.base import split_source
from pipelines.data.sources.class_index import read_class_index, read_matching_index
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.txt", "bird\ncat\ndog\n".encode("utf-16")),
        ("index.txt", "bird\ncat\ndog\n".encode("utf-8-sig")),
        ("index.txt", "bird\r\ncat\r\ndog\r\n".encode("utf-16-le")[:0] + b"bird\r\ncat\r\ndog"),
        ("index.txt", b"# label order of 2020\nbird\n  cat  \ndog\n"),
        ("synset.txt", b"bird finch, Fringilla\ncat tabby, tabby cat\ndog hound\n"),
        ("index.csv", b"bird,finch\ncat,tabby\ndog,hound\n"),
        ("index.tsv", b"bird\tfinch\ncat\ttabby\ndog\thound\n"),
        ("index.json", b'{"0": "bird", "1": "cat", "2": "dog"}'),
        ("index.json", b'{"bird": 0, "dog": 2, "cat": 1}'),
        ("index.json", b'{"0": ["n1", "bird"], "1": ["n2", "cat"], "2": ["n3", "dog"]}'),
        ("index.JSON", b'\xef\xbb\xbf["bird", "cat", "dog"]'),
        ("index.txt", b'["bird", "cat", "dog"]'),
    ],
)
def test_unambiguous_class_index_is_accepted(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    found = ("cat", "dog")
    assert read_matching_index(str(tmp_path / name), found, "x") == ("bird", "cat", "dog")


def test_names_are_compared_in_one_unicode_form_and_may_have_spaces_or_a_hash(tmp_path):
    path = tmp_path / "index.txt"
    names = ["#hashtag", "cafe\u0301", "golden retriever"]
    path.write_text("\n".join(names))
    found = ("#hashtag", "caf\u00e9", "golden retriever")
    assert read_matching_index(str(path), found, "x") == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Cat\ndog", r"'cat'; its first names are 'Cat', 'dog'; add"),
        (b"\xff\xfe\x00", "is not text in UTF-8 or UTF-16"),
        (b"cat\xe9\ndog", "is not text in UTF-8 or UTF-16"),
        (b'{"1": "cat", "2": "dog"}', "the labels must be 0 to 1, got '1', '2'"),
    ],
)
def test_ambiguous_class_index_raises_error_with_its_names(tmp_path, content, message):
    path = tmp_path / "index.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_matching_index(str(path), ("cat", "dog"), "root")


def test_folder_as_class_index_is_named_in_error(tmp_path):
    with pytest.raises(ValueError, match=rf"data.class_index {tmp_path} cannot be read: Is a dir"):
        read_matching_index(str(tmp_path), ("cat",), "root")
