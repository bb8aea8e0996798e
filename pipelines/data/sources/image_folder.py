"""Image folders on a disk or in S3, one subfolder per class."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cluster.storage.s3 import is_uri
from pipelines.data.config import DataConfig, Split
from pipelines.data.sources.base import (
    ExpectedSize,
    FileCounts,
    FileImages,
    Source,
    existing_folder,
)
from pipelines.data.sources.class_index import read_matching_index
from pipelines.data.sources.scan import IMAGE_SUFFIXES, Entry, Scan, folders_by_class, scan_folder

LISTED_NAMES = 10
"""Number of names in a message."""
IMAGENET_CLASSES, IMAGENET_TRAIN, IMAGENET_TEST = 1000, 1_281_167, 50_000
"""An unprepared image folder for a network with 1,000 classes is assumed to be ImageNet. Its
validation images are held out of the training images."""
IMAGENET_QUALITY = 90
IMAGENET_BYTES = {256: 16_370, 320: 23_622, 500: 43_240}
"""Bytes per image, stored as JPEG of that quality, by `data.max_side`: means of a thousand
photographs (docs/operating.md)."""


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
    return ExpectedSize(counts, bytes_per_image * sum(counts.values()), num_classes)


def open_image_folder(config: DataConfig, image_size: int) -> Source:
    """Find the training images in train and the test images in val.

    Raises:
        FileNotFoundError: train or val is missing.
        ValueError: there are no images, train and val have different classes, or are one folder.
    """
    del image_size
    root = config.source_dir.rstrip("/")
    if not is_uri(root):
        _check_folders(existing_folder(root))
    scans = {part: scan_folder(f"{root}/{part}") for part in ("train", "val")}
    for scan in scans.values():
        _check_has_classes(scan)
    folders = {part: folders_by_class(scan) for part, scan in scans.items()}
    _check_equal_classes(root, folders["train"], folders["val"])
    _check_no_empty_class(scans.values())
    found = tuple(sorted(folders["train"]))
    class_names = read_matching_index(config.class_index, found, root)
    train, test = (_image_files(scans[part], folders[part], class_names, config) for part in scans)
    skipped = sum((scan.skipped for scan in scans.values()), Counter[str]())
    return Source(
        train,
        test,
        tuple(class_names),
        FileCounts(sum(scan.num_files for scan in scans.values()), dict(sorted(skipped.items()))),
        {"train": scans["train"].unreadable, "test": scans["val"].unreadable},
    )


def _check_folders(root: Path) -> None:
    """Check that a local folder has the folders train and val."""
    train, val = root / "train", root / "val"
    for part in (train, val):
        if not part.is_dir():
            raise FileNotFoundError(
                f"data.source_dir must contain train and val: {part} does not exist"
            )
    if train.samefile(val):
        raise ValueError(
            f"{train} and {val} are the same folder, so that the test images would be the "
            "training images; put other images into val"
        )


def _check_has_classes(scan: Scan) -> None:
    """Check that a part has class folders."""
    if not scan.classes and scan.num_loose_images:
        raise ValueError(
            f"{scan.folder} has {scan.num_loose_images} images but no class folders, as ImageNet's "
            "validation archive; move each image into a folder with the name of its class, as in "
            f"{scan.folder}/n01440764/ILSVRC2012_val_00000293.JPEG"
        )
    if not scan.classes:
        missing = " or does not exist" if is_uri(scan.folder) else ""
        raise ValueError(
            f"{scan.folder} is empty{missing}: it must contain one folder of images per class"
        )


def _check_no_empty_class(scans: Iterable[Scan]) -> None:
    """Check that every class folder of all parts has images."""
    empty = [
        f"{scan.folder}/{name}"
        for scan in scans
        for name, images in sorted(scan.classes.items())
        if not images
    ]
    if empty:
        raise ValueError(
            f"{_listed(empty)} contains no image ({', '.join(sorted(IMAGE_SUFFIXES))}); add images "
            "or remove the folder"
        )


def _check_equal_classes(root: str, train: dict[str, str], val: dict[str, str]) -> None:
    """Check that both parts have the same classes."""
    if train.keys() == val.keys():
        return
    sentences = []
    for part, names, others in (("train", train, val), ("val", val, train)):
        if only := sorted(names.keys() - others.keys()):
            sentences.append(f"only {part} has {_listed([repr(name) for name in only])}")
    similar = {_simplified(name): name for name in val.keys() - train.keys()}
    pairs = [
        f"{name!r} and {similar[_simplified(name)]!r}"
        for name in sorted(train.keys() - val.keys())
        if _simplified(name) in similar
    ]
    hint = f"; only case or spaces differ in {_listed(pairs)}: rename one of them" if pairs else ""
    raise ValueError(
        f"{root}/train and {root}/val must have the same class folders; "
        f"{'; '.join(sentences)}{hint}"
    )


def _simplified(name: str) -> str:
    return "".join(name.casefold().split())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return ", ".join(names[:LISTED_NAMES]) + more


def _image_files(
    scan: Scan, folders: dict[str, str], class_names: Sequence[str], config: DataConfig
) -> FileImages:
    root, _, part = scan.folder.rpartition("/")
    paths: list[str] = []
    labels: list[int] = []
    images: list[Entry] = []
    for label, name in enumerate(class_names):
        if name in folders:
            members = scan.classes[folders[name]]
            paths += [f"{part}/{folders[name]}/{image.path}" for image in members]
            labels += [label] * len(members)
            images += members
    return FileImages(
        root,
        tuple(paths),
        np.array(labels, np.int64),
        config.max_pixels,
        tuple(image.size for image in images),
        tuple(image.stamp for image in images),
    )
