"""Where images come from: each source gives training images, test images and class names."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from cluster.storage.s3 import ObjectStore, is_uri
from pipelines.data.config import DataConfig, Split
from pipelines.data.sources.images import DecodedImage, decode_image
from pipelines.data.splits import hold_out

REMOTE_READS = 16
"""Image files read from S3 at a time by one process: they wait for the network more than they
decode."""


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


@dataclass(frozen=True)
class ExpectedSize:
    """Size of a data set that is not prepared yet."""

    num_samples: dict[Split, int]
    """Images of each split."""
    stored_bytes: int
    """Bytes of all prepared files; 0: unknown."""


def held_out_size(
    labels: np.ndarray, num_test: int, image_side: int, config: DataConfig
) -> ExpectedSize:
    """Compute the size of a data set of square images with known training labels.

    Args:
        labels: class of each training image, before validation images are held out (images,).
        num_test: number of test images.
        image_side: height and width of the images, in pixels.
        config: settings of the split and of the stored images.
    """
    names = [str(label) for label in range(int(labels.max()) + 1)]
    kept, held = hold_out(labels, config.validation_share, config.split_seed, names)
    counts: dict[Split, int] = {"train": len(kept), "val": len(held), "test": num_test}
    is_raw = config.image_format == "raw"
    return ExpectedSize(counts, sum(counts.values()) * 3 * image_side**2 * is_raw)


def split_source(source: Source, config: DataConfig) -> dict[Split, Images]:
    """The images of each split: validation is held out of the training images."""
    kept, held = hold_out(
        source.train.labels, config.validation_share, config.split_seed, source.class_names
    )
    return {
        "train": Subset(source.train, kept),
        "val": Subset(source.train, held),
        "test": source.test,
    }


def existing_folder(root: str) -> Path:
    """Return `data.source_dir` as a path after checking that the folder exists.

    Raises:
        ValueError: the setting is empty.
        FileNotFoundError: the folder does not exist.
    """
    if not root:
        raise ValueError(
            "data.source_dir is empty; give the folder of the source's files to prepare them"
        )
    if not Path(root).is_dir():
        raise FileNotFoundError(f"data.source_dir is {root}: no such folder")
    return Path(root)
