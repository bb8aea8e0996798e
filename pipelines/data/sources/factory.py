"""Where images come from: each source gives training images, test images and class names."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from cluster.storage.s3 import START_TIMEOUT_SECONDS, ObjectStore, is_uri
from pipelines.data.config import DataConfig
from pipelines.data.sources.images import DecodedImage, decode_image
from pipelines.data.splits import hold_out

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)

DOWNLOADS = Path("data") / "downloads"
REMOTE_READS = 16
"""Image files read from S3 at a time by one process: they wait for the network more than they
decode."""
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

    def read(self, index: int) -> DecodedImage:
        """One image; raises UnreadableImageError."""
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

    def read(self, index: int) -> DecodedImage:
        """The pixels of one image."""
        return DecodedImage(self.pixels[index])


@dataclass(frozen=True)
class FileImages:
    """Images in files of their own."""

    root: str
    """A folder, or an address in S3."""
    paths: tuple[str, ...]
    labels: np.ndarray

    def part(self, indices: np.ndarray) -> "FileImages":
        """Some of the images, with nothing of the others."""
        return FileImages(self.root, tuple(self.paths[i] for i in indices), self.labels[indices])

    def name(self, index: int) -> str:
        """The path below the root, so that a moved folder is still the same source."""
        return self.paths[index]

    def read(self, index: int) -> DecodedImage:
        """Decode one file."""
        place = f"{self.root}/{self.paths[index]}"
        if is_uri(self.root):
            return decode_image(self._store.read(place).data, place)
        return decode_image(Path(place).read_bytes(), place)

    @cached_property
    def _store(self) -> ObjectStore:
        return ObjectStore(connections=REMOTE_READS)


@dataclass(frozen=True)
class EncodedImages:
    """Image files held in memory."""

    title: str
    encoded: Sequence[bytes]
    labels: np.ndarray

    def name(self, index: int) -> str:
        """The title and the number."""
        return f"{self.title} row {index}"

    def read(self, index: int) -> DecodedImage:
        """Decode one image."""
        return decode_image(self.encoded[index], self.name(index))


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

    def read(self, index: int) -> DecodedImage:
        """The chosen image."""
        return self.images.read(int(self.indices[index]))


def check_source(config: DataConfig) -> None:
    """Refuse a folder that does not hold what its source asks for; no image is looked for.

    Raises:
        FileNotFoundError: a folder or file is missing.
        PermissionError: S3 does not let us look.
        ValueError: `data.source_dir` is empty.
    """
    if config.source == "parquet":
        for part in ("train", "test"):
            _parquet_file(_existing_folder(config.source_dir), part)
    elif config.source == "imagefolder" and is_uri(config.source_dir):
        with ObjectStore(connections=1, retry_timeout_seconds=START_TIMEOUT_SECONDS) as store:
            for part in ("train", "val"):
                address = f"{config.source_dir.rstrip('/')}/{part}"
                if next(iter(store.names(address)), None) is None:
                    raise FileNotFoundError(
                        f"data.source_dir must hold train and val: {address} is empty or does not exist"
                    )
    elif config.source == "imagefolder":
        for part in ("train", "val"):
            _existing_part(_existing_folder(config.source_dir) / part)


def open_source(config: DataConfig, image_size: int) -> Source:
    """Find the images that `config` names.

    Raises:
        FileNotFoundError: a folder or file is missing.
        ValueError: there are no images, fewer than two classes, or a label out of range.
    """
    if config.source == "digits":
        source = _digits(image_size)
    elif config.source == "imagefolder":
        source = _imagefolder(config)
    elif config.source == "parquet":
        source = _parquet(_existing_folder(config.source_dir))
    else:
        source = _cifar(config.source, Path(config.source_dir) if config.source_dir else DOWNLOADS)
    if len(source.class_names) < 2:
        raise ValueError(
            f"data.source {config.source} needs 2 or more classes to tell apart, "
            f"got {len(source.class_names)}: {', '.join(source.class_names)}"
        )
    return source


def _existing_folder(root: str) -> Path:
    if not root:
        raise ValueError(
            "data.source_dir is empty; give the folder of the source's files to prepare them"
        )
    if not Path(root).is_dir():
        raise FileNotFoundError(f"data.source_dir is {root}: no such folder")
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
                f"data.source_dir is {root}: {name} is not there and could not be downloaded ({error}); "
                f"put {dataset.filename} there"
            ) from error
    train, test = (
        ArrayImages(f"{name} {title}", part.data, np.array(part.targets, np.int64))
        for title, part in parts.items()
    )
    return Source(train, test, tuple(parts["train"].classes))


def _imagefolder(config: DataConfig) -> Source:
    root = config.source_dir.rstrip("/")
    if is_uri(root):
        with ObjectStore(connections=1) as store:
            names = {part: list(store.names(f"{root}/{part}")) for part in ("train", "val")}
    else:
        _existing_folder(root)
        names = {part: _file_names(Path(root, part)) for part in ("train", "val")}
    files = {part: _by_class(names[part], f"{root}/{part}") for part in names}
    if files["train"].keys() != files["val"].keys():
        different = sorted(files["train"].keys() ^ files["val"].keys())
        raise ValueError(
            f"{root}/train and {root}/val must have the same class folders; "
            f"only one has {', '.join(different[:5])}"
        )
    class_names = tuple(sorted(files["train"]))
    if config.class_index:
        class_names = _indexed(config.class_index, class_names, root)
    train, test = (_image_files(root, part, files[part], class_names) for part in files)
    return Source(train, test, class_names)


def _existing_part(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"data.source_dir must hold train and val: {folder} does not exist")
    return folder


def _file_names(folder: Path) -> list[str]:
    names = []
    for class_folder in _existing_part(folder).iterdir():
        if class_folder.is_dir():
            names.append(f"{class_folder.name}/")
            for at, _, files in os.walk(class_folder):
                names += [str(Path(at, name).relative_to(folder)) for name in files]
    return names


def _by_class(names: Sequence[str], folder: str) -> dict[str, list[str]]:
    """Sort the names below a folder into classes, images alone, in order."""
    files: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    for name in names:
        class_name, slash, rest = name.partition("/")
        if not slash:
            continue  # a file beside the class folders
        images = files.setdefault(class_name, [])
        if PurePosixPath(rest).suffix.lower() in IMAGE_SUFFIXES:
            images.append(rest)
        elif rest:
            others[class_name] += 1
    if not files:
        raise ValueError(f"{folder} is empty: it must hold one folder of images per class")
    for class_name, images in files.items():
        images.sort()
        if others[class_name]:
            logger.warning(
                "%s/%s: %d files that are no images by their name are left out",
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
                f"{root}/{part}/{name} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})"
            )
        paths += [f"{part}/{name}/{image}" for image in images]
        labels += [label] * len(images)
    return FileImages(root, tuple(paths), np.array(labels, np.int64))


def read_class_index(path: str) -> tuple[str, ...]:
    """Read the names of class folders in the order of their labels.

    A text file has one a line; a JSON file is a list, or Keras' `{"0": ["n01440764", ...], ...}`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form, or a name twice.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"data.class_index is {path}: no such file")
    text = Path(path).read_text()
    if path.endswith(".json"):
        try:
            entries = json.loads(text)
            if isinstance(entries, dict):
                entries = [entries[str(label)][0] for label in range(len(entries))]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(f"data.class_index {path} is no list of names: {error!r}") from error
    else:
        entries = [line.strip() for line in text.splitlines() if line.strip()]
    if not isinstance(entries, list) or not all(isinstance(name, str) for name in entries):
        raise ValueError(f"data.class_index {path} must be a list of names in order of label")
    twice = [name for name, count in Counter(entries).items() if count > 1]
    if twice or not entries:
        raise ValueError(
            f"data.class_index {path} must have every name once, "
            f"but has {', '.join(twice[:5]) + ' twice' if twice else 'none'}"
        )
    return tuple(entries)


def _indexed(path: str, found: Sequence[str], root: str) -> tuple[str, ...]:
    names = read_class_index(path)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ValueError(
            f"{root} has {len(unknown)} class folders that are not in data.class_index {path}: "
            f"{', '.join(unknown[:5])}; add them, or take them out of the folder"
        )
    return names


def _parquet(root: Path) -> Source:
    from pyarrow import parquet

    tables = {}
    for part in ("train", "test"):
        found = _parquet_file(root, part)
        columns = parquet.read_schema(found).names
        for column in ("image", "label"):
            if column not in columns:
                raise ValueError(
                    f"{found} has no column {column!r}; its columns are {', '.join(columns)}"
                )
        tables[part] = (found, parquet.read_table(found, columns=["image", "label"]))
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


def _parquet_file(root: Path, part: str) -> Path:
    found = sorted(root.glob(f"*-{part}.parquet"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"data.source_dir {root} must hold exactly one *-{part}.parquet, found "
            + (", ".join(path.name for path in found) or "none")
        )
    return found[0]


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
