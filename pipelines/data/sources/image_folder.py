"""Image folders on a disk or in S3, one subfolder per class."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from cluster.storage.s3 import START_TIMEOUT_SECONDS, ObjectStore, is_uri
from pipelines.data.config import DataConfig, Split
from pipelines.data.sources.base import ExpectedSize, FileImages, Source, existing_folder
from pipelines.data.sources.class_index import read_matching_index

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
IMAGENET_CLASSES, IMAGENET_TRAIN, IMAGENET_TEST = 1000, 1_281_167, 50_000
"""An unprepared image folder for a network with 1,000 classes is assumed to be ImageNet. Its
validation images are held out of the training images."""
IMAGENET_QUALITY = 90
IMAGENET_BYTES = {256: 16_370, 320: 23_622, 500: 43_240}
"""Bytes per image, stored as JPEG of that quality, by `data.max_side`: means of a thousand
photographs (docs/operating.md)."""


def check_image_folder(config: DataConfig) -> None:
    """Check that `data.source_dir` has the folders train and val.

    Raises:
        FileNotFoundError: a folder is missing.
        PermissionError: S3 denies access.
        ValueError: `data.source_dir` is empty.
    """
    if not is_uri(config.source_dir):
        for part in ("train", "val"):
            _existing_part(existing_folder(config.source_dir) / part)
        return
    with ObjectStore(connections=1, retry_timeout_seconds=START_TIMEOUT_SECONDS) as store:
        for part in ("train", "val"):
            uri = f"{config.source_dir.rstrip('/')}/{part}"
            if next(iter(store.names(uri)), None) is None:
                raise FileNotFoundError(
                    f"data.source_dir must contain train and val: {uri} is empty or does not exist"
                )


def expected_imagenet_size(
    config: DataConfig, num_classes: int, image_size: int
) -> ExpectedSize | None:
    """Compute ImageNet's size if the network has 1,000 classes; otherwise None."""
    del image_size
    if num_classes != IMAGENET_CLASSES:
        return None
    held = round(IMAGENET_TRAIN * config.validation_share)
    counts: dict[Split, int] = {"train": IMAGENET_TRAIN - held, "val": held, "test": IMAGENET_TEST}
    is_known = config.image_format == "jpeg" and config.jpeg_quality == IMAGENET_QUALITY
    bytes_per_image = IMAGENET_BYTES.get(config.max_side, 0) if is_known else 0
    return ExpectedSize(counts, bytes_per_image * sum(counts.values()))


def open_image_folder(config: DataConfig, image_size: int) -> Source:
    """Find the training images in train and the test images in val.

    Raises:
        FileNotFoundError: train or val is missing.
        ValueError: there are no images, or train and val have different classes.
    """
    del image_size
    root = config.source_dir.rstrip("/")
    if is_uri(root):
        with ObjectStore(connections=1) as store:
            names = {part: list(store.names(f"{root}/{part}")) for part in ("train", "val")}
    else:
        existing_folder(root)
        names = {part: _file_names(Path(root, part)) for part in ("train", "val")}
    files = {part: _by_class(names[part], f"{root}/{part}") for part in names}
    if files["train"].keys() != files["val"].keys():
        different = sorted(files["train"].keys() ^ files["val"].keys())
        raise ValueError(
            f"{root}/train and {root}/val must have the same class folders; "
            f"only one of them has {', '.join(different[:5])}"
        )
    class_names = tuple(sorted(files["train"]))
    if config.class_index:
        class_names = read_matching_index(config.class_index, class_names, root)
    train, test = (_image_files(root, part, files[part], class_names) for part in files)
    return Source(train, test, class_names)


def _existing_part(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"data.source_dir must contain train and val: {folder} does not exist"
        )
    return folder


def _file_names(folder: Path) -> list[str]:
    names = []
    for class_folder in _existing_part(folder).iterdir():
        if class_folder.is_dir():
            names.append(f"{class_folder.name}/")
            for directory, _, files in os.walk(class_folder):
                names += [str(Path(directory, name).relative_to(folder)) for name in files]
    return names


def _by_class(names: Sequence[str], folder: str) -> dict[str, list[str]]:
    """Group the image names below a folder by class, sorted."""
    files: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    for name in names:
        class_name, slash, rest = name.partition("/")
        if not slash:
            continue  # a file outside the class folders
        images = files.setdefault(class_name, [])
        if PurePosixPath(rest).suffix.lower() in IMAGE_SUFFIXES:
            images.append(rest)
        elif rest:
            others[class_name] += 1
    if not files:
        raise ValueError(f"{folder} is empty: it must contain one folder of images per class")
    for class_name, images in files.items():
        images.sort()
        if others[class_name]:
            logger.warning(
                "%s/%s: %d files without an image suffix are ignored",
                folder, class_name, others[class_name],
            )  # fmt: skip
    return files


def _image_files(
    root: str, part: str, files: dict[str, list[str]], class_names: Sequence[str]
) -> FileImages:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        images = files.get(name, [])
        if name in files and not images:
            raise ValueError(
                f"{root}/{part}/{name} contains no image ({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        paths += [f"{part}/{name}/{image}" for image in images]
        labels += [label] * len(images)
    return FileImages(root, tuple(paths), np.array(labels, np.int64))
