"""Digits and CIFAR."""

import hashlib
import pickle
import tarfile

import numpy as np
import pytest

from pipelines.data.config import DataConfig
from pipelines.data.sources.base import read_image, split_source
from pipelines.data.sources.factory import open_source
from tests.support.image_files import (
    pixels,
)


def fake_cifar(root, monkeypatch):
    """Write CIFAR-10 files with three images each, as torchvision expects them."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir()
    lists = {"train_list": [], "test_list": []}
    for part, name, seed in (("train_list", "data_batch_1", 0), ("test_list", "test_batch", 9)):
        rows = np.stack([pixels(seed + k).transpose(2, 0, 1).reshape(-1) for k in range(3)])
        content = pickle.dumps({"data": rows, "labels": [0, 1, 1]})
        (folder / name).write_bytes(content)
        lists[part].append([name, hashlib.md5(content).hexdigest()])
    content = pickle.dumps({"label_names": ["cat", "dog"]})
    (folder / "batches.meta").write_bytes(content)
    meta = {**CIFAR10.meta, "md5": hashlib.md5(content).hexdigest()}
    for name, value in {**lists, "meta": meta}.items():
        monkeypatch.setattr(CIFAR10, name, value)
    with tarfile.open(root / CIFAR10.filename, "w:gz") as archive:
        archive.add(folder, CIFAR10.base_folder)
    monkeypatch.setattr(
        CIFAR10, "tgz_md5", hashlib.md5((root / CIFAR10.filename).read_bytes()).hexdigest()
    )


def test_digits_are_1797_rgb_images_each_in_exactly_one_split():
    config = DataConfig(source="digits", validation_share=0.2)
    parts = split_source(open_source(config, 32), config)
    assert [len(parts[split].labels) for split in ("train", "val", "test")] == [1222, 306, 269]
    used = []
    for images in parts.values():
        assert np.bincount(images.labels).min() > 0.9 * len(images.labels) / 10
        assert read_image(images, 0).pixels.shape == (32, 32, 3)
        used += [images.name(index) for index in range(len(images.labels))]
    assert len(set(used)) == 1797


def test_digits_test_split_does_not_depend_on_split_seed():
    names = []
    for seed in (0, 1):
        config = DataConfig(source="digits", split_seed=seed)
        test = split_source(open_source(config, 8), config)["test"]
        names.append([test.name(index) for index in range(len(test.labels))])
    assert names[0] == names[1]


def test_cifar10_is_read_from_source_dir(tmp_path, monkeypatch):
    fake_cifar(tmp_path, monkeypatch)
    source = open_source(DataConfig(source="cifar10", source_dir=str(tmp_path)), 32)
    assert source.class_names == ("cat", "dog")
    assert source.test.labels.tolist() == [0, 1, 1]
    assert np.array_equal(read_image(source.train, 1).pixels, pixels(1))


def test_failed_cifar10_download_names_the_missing_file_and_folder(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .* put cifar-10-python"):
        open_source(DataConfig(source="cifar10", source_dir=str(tmp_path / "cifar")), 32)
