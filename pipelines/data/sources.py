"""Where images come from: each source gives training images, test images and class names."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from pipelines.data.config import DataConfig
from pipelines.data.images import decode_rgb
from pipelines.data.splits import hold_out

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)

DOWNLOADS = Path("data") / "downloads"
DIGITS_TEST_SHARE = 0.15
DIGITS_TEST_SEED = 0
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


class Images(Protocol):
    """Labelled images, read one at a time and from several threads."""

    @property
    def labels(self) -> np.ndarray:
        """Class of every image, counted from 0: (images,), int64."""
        ...

    def name(self, index: int) -> str:
        """What to call an image in a message."""
        ...

    def read(self, index: int) -> np.ndarray:
        """RGB pixels (height, width, 3), uint8; raises UnreadableImageError."""
        ...


@dataclass(frozen=True)
class Source:
    """All that a source has: images to learn from, images to score on, names of the classes."""

    train: Images
    test: Images
    class_names: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the classes and of every image's name and label, in order."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for images in (self.train, self.test):
            digest.update(f"\n{len(images.labels)}".encode())
            for index, label in enumerate(images.labels):
                digest.update(f"\n{images.name(index)}\t{label}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ArrayImages:
    """Images that are already pixels in memory."""

    title: str
    pixels: np.ndarray
    labels: np.ndarray

    def name(self, index: int) -> str:
        """The title and the number."""
        return f"{self.title} image {index}"

    def read(self, index: int) -> np.ndarray:
        """The pixels of one image."""
        return self.pixels[index]


@dataclass(frozen=True)
class FileImages:
    """Images in files of their own."""

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray

    def name(self, index: int) -> str:
        """The path below the root, so that a moved folder is still the same source."""
        return self.paths[index]

    def read(self, index: int) -> np.ndarray:
        """Decode one file."""
        path = self.root / self.paths[index]
        return decode_rgb(path.read_bytes(), str(path))


@dataclass(frozen=True)
class EncodedImages:
    """Image files held in memory."""

    title: str
    encoded: Sequence[bytes]
    labels: np.ndarray

    def name(self, index: int) -> str:
        """The title and the number."""
        return f"{self.title} row {index}"

    def read(self, index: int) -> np.ndarray:
        """Decode one image."""
        return decode_rgb(self.encoded[index], self.name(index))


@dataclass(frozen=True)
class Subset:
    """Some images of others."""

    images: Images
    indices: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Labels of the chosen images."""
        return self.images.labels[self.indices]

    def name(self, index: int) -> str:
        """Name of the chosen image."""
        return self.images.name(int(self.indices[index]))

    def read(self, index: int) -> np.ndarray:
        """Pixels of the chosen image."""
        return self.images.read(int(self.indices[index]))


def open_source(config: DataConfig, image_size: int) -> Source:
    """Find the images that `config` names.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: there are no images, fewer than two classes, or a label out of range.
    """
    if config.source == "digits":
        source = _digits(image_size)
    elif config.source == "imagefolder":
        source = _imagefolder(_existing_folder(config.root))
    elif config.source == "parquet":
        source = _parquet(_existing_folder(config.root))
    else:
        source = _cifar(config.source, Path(config.root) if config.root else DOWNLOADS)
    if len(source.class_names) < 2:
        raise ValueError(
            f"data.source {config.source} needs 2 or more classes to tell apart, "
            f"got {len(source.class_names)}: {', '.join(source.class_names)}"
        )
    return source


def _existing_folder(root: str) -> Path:
    if not root:
        raise ValueError(
            "data.root is empty; give the folder of the source's files to prepare them"
        )
    if not Path(root).is_dir():
        raise FileNotFoundError(f"data.root is {root}: no such folder")
    return Path(root)


def _digits(image_size: int) -> Source:
    from sklearn.datasets import load_digits

    counts, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    # A pixel counts the set dots, 0 to 16, in a 4x4 cell of the scan.
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
    return Source(Subset(images, train), Subset(images, test), class_names)


def _cifar(name: str, root: Path) -> Source:
    from torchvision import datasets

    dataset = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    parts = {}
    for title, train in (("train", True), ("test", False)):
        try:
            parts[title] = dataset(root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"data.root is {root}: {name} is not there and could not be downloaded ({error}); "
                f"put {dataset.filename} there"
            ) from error
    train, test = (
        ArrayImages(f"{name} {title}", part.data, np.array(part.targets, np.int64))
        for title, part in parts.items()
    )
    return Source(train, test, tuple(parts["train"].classes))


def _imagefolder(root: Path) -> Source:
    names = {part: _class_folders(root / part) for part in ("train", "val")}
    if names["train"] != names["val"]:
        different = sorted(set(names["train"]) ^ set(names["val"]))
        raise ValueError(
            f"{root}/train and {root}/val must have the same class folders; "
            f"only one has {', '.join(different[:5])}"
        )
    train, test = (_image_files(root, part, names[part]) for part in ("train", "val"))
    return Source(train, test, names["train"])


def _class_folders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"data.root must hold train and val: {folder} does not exist")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        raise ValueError(f"{folder} is empty: it must hold one folder of images per class")
    return tuple(names)


def _image_files(root: Path, part: str, class_names: tuple[str, ...]) -> FileImages:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        files = [path for path in (root / part / name).rglob("*") if path.is_file()]
        images = sorted(
            str(path.relative_to(root)) for path in files if path.suffix.lower() in IMAGE_SUFFIXES
        )
        if not images:
            raise ValueError(
                f"{root / part / name} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        if len(images) < len(files):
            logger.warning(
                "%s: %d files that are no images by their name are left out",
                root / part / name,
                len(files) - len(images),
            )
        paths += images
        labels += [label] * len(images)
    return FileImages(root, tuple(paths), np.array(labels, np.int64))


def _parquet(root: Path) -> Source:
    from pyarrow import parquet

    tables = {}
    for part in ("train", "test"):
        found = sorted(root.glob(f"*-{part}.parquet"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"data.root {root} must hold exactly one *-{part}.parquet, found "
                + (", ".join(path.name for path in found) or "none")
            )
        columns = parquet.read_schema(found[0]).names
        for column in ("image", "label"):
            if column not in columns:
                raise ValueError(
                    f"{found[0]} has no column {column!r}; its columns are {', '.join(columns)}"
                )
        tables[part] = (found[0], parquet.read_table(found[0], columns=["image", "label"]))
    metadata = tables["train"][1].schema.metadata or {}
    train, test = (_encoded_images(path, table) for path, table in tables.values())
    if b"classes" in metadata:
        class_names = tuple(str(name) for name in json.loads(metadata[b"classes"]))
    else:
        class_names = tuple(str(label) for label in range(int(train.labels.max()) + 1))
    for images in (train, test):
        outside = np.flatnonzero((images.labels < 0) | (images.labels >= len(class_names)))
        if len(outside):
            raise ValueError(
                f"{images.name(int(outside[0]))} has label {images.labels[outside[0]]}, "
                f"but labels must be 0 to {len(class_names) - 1}, one per class of the training set"
            )
    return Source(train, test, class_names)


def _encoded_images(path: Path, table: "pyarrow.Table") -> EncodedImages:
    from pyarrow import types

    image, label = table["image"], table["label"]
    if not (types.is_binary(image.type) or types.is_large_binary(image.type)):
        raise ValueError(f"{path}: column image must be bytes of image files, is {image.type}")
    if not types.is_integer(label.type) or label.null_count or image.null_count:
        raise ValueError(f"{path}: labels must be whole numbers, and no image or label may be null")
    if not len(table):
        raise ValueError(f"{path} holds no images")
    return EncodedImages(path.name, image.to_pylist(), label.to_numpy().astype(np.int64))
