"""Table of the image sources, by the value of `data.source`."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.data.config import DataConfig
from pipelines.data.sources.base import ExpectedSize, Source
from pipelines.data.sources.builtin import (
    expected_cifar_size,
    expected_digits_size,
    open_cifar,
    open_digits,
)
from pipelines.data.sources.image_folder import (
    check_image_folder,
    expected_imagenet_size,
    open_image_folder,
)
from pipelines.data.sources.parquet import check_parquet, open_parquet


def _nothing_to_check(config: DataConfig) -> None:
    del config


def _unknown_size(config: DataConfig, num_classes: int, image_size: int) -> ExpectedSize | None:
    del config, num_classes, image_size
    return None


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """Functions of one image source."""

    open: Callable[[DataConfig, int], Source]
    """Find the images, given the settings and the image size of the network."""
    check: Callable[[DataConfig], None] = _nothing_to_check
    """Check that the source's files exist, without listing images; see `check_source`."""
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
        check=check_image_folder,
        needs_folder=True,
        expected_size=expected_imagenet_size,
    ),
    "parquet": SourceSpec(open=open_parquet, check=check_parquet, needs_folder=True),
}


def check_source(config: DataConfig) -> None:
    """Check that the source's files exist, without listing images.

    Raises:
        FileNotFoundError: a folder or file is missing.
        PermissionError: S3 denies access.
        ValueError: `data.source_dir` is empty.
    """
    SOURCES[config.source].check(config)


def open_source(config: DataConfig, image_size: int) -> Source:
    """Find the images of the configured source.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: there are no images, fewer than two classes, or a label out of range.
    """
    source = SOURCES[config.source].open(config, image_size)
    if len(source.class_names) < 2:
        raise ValueError(
            f"data.source {config.source} needs 2 or more classes to tell apart, "
            f"got {len(source.class_names)}: {', '.join(source.class_names)}"
        )
    return source
