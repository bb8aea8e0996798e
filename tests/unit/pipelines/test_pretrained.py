"""Trained networks of the package: files, cards and accuracy."""

import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from pipelines.data.loading.image_files import preprocess
from pipelines.data.sources.images import decode_image
from pipelines.model_packaging.card import CARD, model_card
from ranet import BudgetedClassifier, RANet, pretrained_names, read_model
from ranet.model.saved import TENSORS, find_model

MAX_BYTES = 4_000_000
NUM_IMAGES = 1000
Encoded = tuple[bytes, int]
"""Image file and label."""


def cifar10(shared_data: Path) -> list[Encoded]:
    table = parquet.read_table(shared_data / "cifar10-test.parquet").to_pydict()
    return list(zip(table["image"], table["label"], strict=True))


def imagenette(shared_data: Path) -> list[Encoded]:
    with tarfile.open(shared_data / "imagenette224-mini.tar") as archive:
        members = [each for each in archive if each.isfile() and "/val/" in f"/{each.name}"]
        names = sorted({PurePosixPath(each.name).parent.name for each in members})
        files = ((archive.extractfile(each), each.name) for each in members)
        return [
            (file.read(), names.index(PurePosixPath(name).parent.name))
            for file, name in files
            if file is not None
        ]


TEST_IMAGES: dict[str, Callable[[Path], list[Encoded]]] = {
    "cifar10": cifar10,
    "imagenette": imagenette,
}
"""Test images by the first word of a network's name."""


@pytest.mark.parametrize("name", pretrained_names())
def test_network_of_the_package_is_complete(name: str):
    folder = find_model(name)
    saved = read_model(folder)
    assert saved.metadata.name == name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MAX_BYTES
    stored = torch.load(folder / TENSORS, weights_only=True)
    assert {each.dtype for each in stored.values()} == {torch.float16, torch.int64}
    card = (folder / CARD).read_text(encoding="utf-8")
    assert card == model_card(saved.metadata, torch.float16)
    assert "shared/" not in card
    model = RANet.from_pretrained(name)
    size = saved.metadata.preprocessing.image_size
    logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (len(saved.metadata.exits), 2, len(saved.metadata.class_names))
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", pretrained_names())
def test_network_of_the_package_has_the_accuracy_of_its_card(name: str, shared_data: Path):
    read = TEST_IMAGES.get(name.partition("-")[0])
    if read is None:
        pytest.skip(f"no test images for {name} in {shared_data}")
    classifier = BudgetedClassifier(read_model(find_model(name)))
    images, labels = chosen(read(shared_data), classifier)
    for row in classifier.metadata.curve:
        if row.budget_fraction not in (0.5, 1.0):
            continue
        found = classifier.classify(images, row.budget_fraction)
        accuracy = 100 * (found.labels == labels).double().mean().item()
        share = row.test_top1 / 100
        error = 100 * (share * (1 - share) / NUM_IMAGES) ** 0.5
        assert accuracy == pytest.approx(row.test_top1, abs=4 * error)
        costs = found.mult_adds.double()
        assert costs.mean() <= row.test_mult_adds + 4 * costs.std() / NUM_IMAGES**0.5 + 1


def chosen(
    encoded: list[Encoded], classifier: BudgetedClassifier
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode a random choice of images; return images and labels."""
    picks = np.random.default_rng(0).choice(len(encoded), NUM_IMAGES, replace=False)
    preprocessing = classifier.metadata.preprocessing
    pixels = (decode_image(encoded[k][0], f"image {k}").pixels for k in picks)
    images = np.stack([preprocess(each, preprocessing) for each in pixels])
    return torch.from_numpy(images), torch.tensor([encoded[k][1] for k in picks])
