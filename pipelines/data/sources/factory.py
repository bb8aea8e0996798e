"""Table of the image sources, by the value of `data.source`."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.data.config import DataConfig
from pipelines.data.sources.base import ExpectedSize, Images, Source
from pipelines.data.sources.builtin import (
    expected_cifar_size,
    expected_digits_size,
    open_cifar,
    open_digits,
)
from pipelines.data.sources.files import printable
from pipelines.data.sources.image_folder import (
    expected_imagenet_size,
    open_image_folder,
)
from pipelines.data.sources.images import UnreadableImageError, digest_of
from pipelines.data.sources.parquet import open_parquet

SAMPLED_TEST_IMAGES = 32
"""Number of test images that are compared with the training images before the preparation."""
MAX_COMPARED_IMAGES = 5000
"""Max number of training images that are read for this comparison."""
MAX_COMPARED_BYTES = 1 << 30
"""Max bytes of their files."""


def _unknown_size(config: DataConfig, num_classes: int, image_size: int) -> ExpectedSize | None:
    del config, num_classes, image_size
    return None


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """Functions of one image source."""

    open: Callable[[DataConfig, int], Source]
    """Find the images, given the settings and the image size of the network."""
    needs_folder: bool = False
    """Whether the user must provide the files in `data.source_dir`."""
    is_downloaded: bool = False
    """Whether missing files are downloaded."""
    expected_size: Callable[[DataConfig, int, int], ExpectedSize | None] = _unknown_size
    """Compute the counts and bytes of splits that are not prepared yet, given the settings, the
    number of classes and the image size of the network; None where unknown."""


_CIFAR = SourceSpec(open=open_cifar, is_downloaded=True, expected_size=expected_cifar_size)

SOURCES: dict[str, SourceSpec] = {
    "digits": SourceSpec(open=open_digits, expected_size=expected_digits_size),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "imagefolder": SourceSpec(
        open=open_image_folder,
        needs_folder=True,
        expected_size=expected_imagenet_size,
    ),
    "parquet": SourceSpec(open=open_parquet, needs_folder=True),
}


def open_source(config: DataConfig, image_size: int) -> Source:
    """Find the images of the configured source.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: there are no images, fewer than two classes, a label out of range, or the
            test images are training images.
    """
    source = SOURCES[config.source].open(config, image_size)
    if len(source.class_names) < 2:
        raise ValueError(
            f"data.source {config.source} needs 2 or more classes to tell apart, "
            f"got {len(source.class_names)}: {', '.join(map(repr, source.class_names))}"
        )
    _check_test_images(source)
    return source


def _check_test_images(source: Source) -> None:
    """Check that the test images are no training images.

    A sample of the test images is compared: the summary of the preparation counts single
    duplicates, and this check saves the preparation of a test set that was copied.

    Raises:
        ValueError: every image of the sample is in the training set.
    """
    test, train = source.test, source.train
    count = len(test.labels)
    sample = range(0, count, -(-count // SAMPLED_TEST_IMAGES))
    sizes = {test.file_size(index) for index in sample}
    # Only files of the same size can be equal. If all images have one size, reading them is slow.
    similar = [index for index in range(len(train.labels)) if train.file_size(index) in sizes]
    num_bytes = sum(train.file_size(index) for index in similar)
    if not similar or len(similar) > MAX_COMPARED_IMAGES or num_bytes > MAX_COMPARED_BYTES:
        return
    known = {_content_key(train, index) for index in similar}
    if all(_content_key(test, index) in known for index in sample):
        raise ValueError(
            f"the test images are training images: {printable(test.name(sample[0]))} and "
            f"{len(sample) - 1} other images that were compared have the same bytes as training "
            "images; put other images into the test set"
        )


def _content_key(images: Images, index: int) -> str | bytes:
    """Return a key that is equal for equal images."""
    if images.stamp(index).startswith('"'):
        return images.stamp(index)
    try:
        return digest_of(images.content(index))
    except (UnreadableImageError, OSError):  # equals no other image
        return f"{id(images)} {index}"
