"""Sources without files of the user: digits, CIFAR-10 and CIFAR-100."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data.config import DataConfig
from pipelines.data.sources.base import (
    ArrayImages,
    ExpectedSize,
    FileCounts,
    Source,
    Subset,
    held_out_size,
)
from pipelines.data.splits import hold_out

DOWNLOADS = Path("data") / "downloads"
DIGITS_TEST_SHARE = 0.15
DIGITS_TEST_SEED = 0
CIFAR = {"cifar10": (10, 5000), "cifar100": (100, 500)}
"""Number of classes, and of training images of each class."""
CIFAR_TEST_IMAGES, CIFAR_SIDE = 10_000, 32


def open_digits(config: DataConfig, image_size: int) -> Source:
    """Resize scikit-learn's handwritten digits, and choose their test set."""
    del config
    from sklearn.datasets import load_digits

    counts, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    # Each pixel is the number of set dots (0 to 16) in a 4x4 cell of the scan.
    grey = (counts.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    pixels = np.stack(
        [
            np.asarray(
                Image.fromarray(image)
                .resize((image_size, image_size), Image.Resampling.BICUBIC)
                .convert("RGB")
            )
            for image in grey
        ]
    )
    images = ArrayImages("digits", pixels, labels.astype(np.int64))
    class_names = tuple("0123456789")
    train, test = hold_out(images.labels, DIGITS_TEST_SHARE, DIGITS_TEST_SEED, class_names)
    return Source(
        Subset(images, train), Subset(images, test), class_names, FileCounts(len(images.labels))
    )


def expected_digits_size(config: DataConfig, num_classes: int, image_size: int) -> ExpectedSize:
    """Count the digits of each split."""
    del num_classes
    source = open_digits(config, image_size)
    return held_out_size(source.train.labels, len(source.test.labels), image_size, config)


def expected_cifar_size(config: DataConfig, num_classes: int, image_size: int) -> ExpectedSize:
    """Compute CIFAR's size from its published counts."""
    del num_classes, image_size
    classes, each = CIFAR[config.source]
    labels = np.repeat(np.arange(classes), each)
    return held_out_size(labels, CIFAR_TEST_IMAGES, CIFAR_SIDE, config)


def open_cifar(config: DataConfig, image_size: int) -> Source:
    """Read CIFAR-10 or CIFAR-100; download missing files.

    Raises:
        FileNotFoundError: the files are missing and could not be downloaded.
    """
    del image_size
    name, root = config.source, Path(config.source_dir or DOWNLOADS)
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    parts = {}
    for title, train in (("train", True), ("test", False)):
        try:
            parts[title] = dataset(root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"data.source_dir is {root}: {name} is missing and could not be downloaded "
                f"({error}); put {dataset.filename} into that folder"
            ) from error
    train, test = (
        ArrayImages(f"{name} {title}", part.data, np.array(part.targets, np.int64))
        for title, part in parts.items()
    )
    counts = FileCounts(len(train.labels) + len(test.labels))
    return Source(train, test, tuple(parts["train"].classes), counts)
