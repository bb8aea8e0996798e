"""Image sources: labelled training images, test images and class names."""

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
"""Threads that read image files from S3 in one process: network latency outweighs decoding."""


class Images(Protocol):
    """Labelled images that several threads may read one at a time."""

    @property
    def labels(self) -> np.ndarray:
        """Class of every image, counted from 0: (images,), int64."""
        ...

    def name(self, index: int) -> str:
        """Return the name of an image, for messages and the fingerprint."""
        ...

    def read(self, index: int) -> DecodedImage:
        """Decode an image; raises UnreadableImageError."""
        ...


@dataclass(frozen=True)
class Source:
    """Training images, test images and class names of a source."""

    train: Images
    test: Images
    class_names: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of class names, image names and labels."""
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for images in (self.train, self.test):
            digest.update(f"\n{len(images.labels)}".encode())
            for index, label in enumerate(images.labels):
                digest.update(f"\n{images.name(index)}\t{label}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ArrayImages:
    """Images whose pixels are in memory."""

    title: str
    pixels: np.ndarray
    labels: np.ndarray

    def name(self, index: int) -> str:
        """Return the title and the index."""
        return f"{self.title} image {index}"

    def read(self, index: int) -> DecodedImage:
        """Return the pixels of one image."""
        return DecodedImage(self.pixels[index])


@dataclass(frozen=True)
class FileImages:
    """Images in separate files on a disk or in S3."""

    root: str
    """Path or S3 URI of the folder."""
    paths: tuple[str, ...]
    labels: np.ndarray

    def part(self, indices: np.ndarray) -> "FileImages":
        """Return some of the images, without references to the rest."""
        return FileImages(self.root, tuple(self.paths[i] for i in indices), self.labels[indices])

    def name(self, index: int) -> str:
        """Return the path of an image below the root."""
        return self.paths[index]

    def read(self, index: int) -> DecodedImage:
        """Read and decode one file."""
        location = f"{self.root}/{self.paths[index]}"
        if is_uri(self.root):
            return decode_image(self._store.read(location).data, location)
        return decode_image(Path(location).read_bytes(), location)

    @property
    def reading_threads(self) -> int:
        """Threads that one CPU should use for reading."""
        return REMOTE_READS if is_uri(self.root) else 1

    @cached_property
    def _store(self) -> ObjectStore:
        return ObjectStore(connections=REMOTE_READS)


@dataclass(frozen=True)
class EncodedImages:
    """Encoded image files in memory."""

    title: str
    encoded: Sequence[bytes]
    labels: np.ndarray

    def name(self, index: int) -> str:
        """Return the title and the index."""
        return f"{self.title} row {index}"

    def read(self, index: int) -> DecodedImage:
        """Decode one image."""
        return decode_image(self.encoded[index], self.name(index))


@dataclass(frozen=True)
class Subset:
    """Selection of images from another image set."""

    images: Images
    indices: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """Labels of the selected images."""
        return self.images.labels[self.indices]

    def name(self, index: int) -> str:
        """Return the name of a selected image."""
        return self.images.name(int(self.indices[index]))

    def read(self, index: int) -> DecodedImage:
        """Decode a selected image."""
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
    """Compute the size of a data set from its training labels.

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
    """Return the images of each split; validation is held out of training."""
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
