"""Image sources: labelled training images, test images and class names."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from cluster.storage.s3 import ObjectStore, is_uri
from pipelines.data.config import MAX_PIXELS, DataConfig, Split
from pipelines.data.sources.files import printable, read_image_file
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

    def file_size(self, index: int) -> int:
        """Return the bytes of the file that holds an image; 0: none."""
        ...

    def stamp(self, index: int) -> str:
        """Return the file's time of change or ETag; empty: none."""
        ...

    def content(self, index: int) -> bytes | np.ndarray:
        """Return the encoded image, or the pixels; raises UnreadableImageError."""
        ...

    def decode(self, index: int, content: bytes | np.ndarray) -> DecodedImage:
        """Decode the content of an image; raises UnreadableImageError."""
        ...


def read_image(images: Images, index: int) -> DecodedImage:
    """Read and decode an image; raises UnreadableImageError."""
    return images.decode(index, images.content(index))


@dataclass(frozen=True)
class FileCounts:
    """Files of a source, for the summary."""

    seen: int
    """Number of files; of images for a source that has other files."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Number of skipped files by reason."""


@dataclass(frozen=True)
class Source:
    """Training images, test images and class names of a source."""

    train: Images
    test: Images
    class_names: tuple[str, ...]
    files: FileCounts
    unreadable: Mapping[Split, tuple[str, ...]] = field(default_factory=dict)
    """One sentence for each broken file or folder that was found without reading images, by the
    split of its part."""

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 of class names, image names, labels and file sizes."""
        return self._hash(lambda images, index: str(images.file_size(index)))

    @cached_property
    def stamps(self) -> str:
        """Return the SHA-256 of the files' times of change."""
        return self._hash(lambda images, index: images.stamp(index))

    def _hash(self, text: Callable[[Images, int], str]) -> str:
        digest = hashlib.sha256(json.dumps(self.class_names).encode())
        for images in (self.train, self.test):
            digest.update(f"\n{len(images.labels)}".encode())
            for index, label in enumerate(images.labels):
                line = f"\n{images.name(index)}\t{label}\t{text(images, index)}"
                digest.update(line.encode(errors="surrogateescape"))
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

    def file_size(self, index: int) -> int:
        """Return 0: there is no file."""
        del index
        return 0

    def stamp(self, index: int) -> str:
        """Return an empty string: there is no file."""
        del index
        return ""

    def content(self, index: int) -> np.ndarray:
        """Return the pixels of one image."""
        return np.ascontiguousarray(self.pixels[index])

    def decode(self, index: int, content: bytes | np.ndarray) -> DecodedImage:
        """Return the pixels as they are."""
        del index
        assert isinstance(content, np.ndarray)
        return DecodedImage(content)


@dataclass(frozen=True)
class FileImages:
    """Images in separate files on a disk or in S3."""

    root: str
    """Path or S3 URI of the folder."""
    paths: tuple[str, ...]
    labels: np.ndarray
    max_pixels: int = MAX_PIXELS
    """Max number of pixels of an image that is decoded."""
    sizes: tuple[int, ...] = ()
    """Bytes of every file."""
    stamps: tuple[str, ...] = ()
    """Time of the last change, or ETag, of every file."""

    def part(self, indices: np.ndarray) -> "FileImages":
        """Return some of the images for reading, without references to the rest."""
        paths = tuple(self.paths[i] for i in indices)
        return FileImages(self.root, paths, self.labels[indices], self.max_pixels)

    def name(self, index: int) -> str:
        """Return the path of an image below the root."""
        return self.paths[index]

    def file_size(self, index: int) -> int:
        """Return the bytes of one file."""
        return self.sizes[index]

    def stamp(self, index: int) -> str:
        """Return the time of change or the ETag of one file."""
        return self.stamps[index]

    def decode(self, index: int, content: bytes | np.ndarray) -> DecodedImage:
        """Decode the content of one file."""
        assert isinstance(content, bytes)
        name = printable(f"{self.root}/{self.paths[index]}")
        return decode_image(content, name, self.max_pixels)

    def content(self, index: int) -> bytes:
        """Read one file."""
        location = f"{self.root}/{self.paths[index]}"
        return self._store.read(location).data if is_uri(self.root) else read_image_file(location)

    @property
    def reading_threads(self) -> int:
        """Threads that one CPU should use for reading."""
        return REMOTE_READS if is_uri(self.root) else 1

    @cached_property
    def _store(self) -> ObjectStore:
        return ObjectStore(connections=REMOTE_READS)


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

    def file_size(self, index: int) -> int:
        """Return the bytes of the file of a selected image."""
        return self.images.file_size(int(self.indices[index]))

    def stamp(self, index: int) -> str:
        """Return the time of change of the file of a selected image."""
        return self.images.stamp(int(self.indices[index]))

    def content(self, index: int) -> bytes | np.ndarray:
        """Return the content of a selected image."""
        return self.images.content(int(self.indices[index]))

    def decode(self, index: int, content: bytes | np.ndarray) -> DecodedImage:
        """Decode the content of a selected image."""
        return self.images.decode(int(self.indices[index]), content)


@dataclass(frozen=True)
class ExpectedSize:
    """Size of a data set that is not prepared yet."""

    num_samples: dict[Split, int]
    """Images of each split."""
    stored_bytes: int
    """Bytes of all prepared files; 0: unknown."""
    num_classes: int
    """Number of classes."""
    side: int = 0
    """Stored height and width of all images, in pixels; 0: unknown."""


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
    side = min(image_side, config.max_side or image_side)
    stored_bytes = sum(counts.values()) * 3 * side**2 * is_raw
    return ExpectedSize(counts, stored_bytes, len(names), side)


def split_source(source: Source, config: DataConfig) -> dict[Split, Images]:
    """Return the images of each split; validation is held out of training.

    Raises:
        ValueError: a class has too few training images.
    """
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
        raise FileNotFoundError(f"data.source_dir is {root}: no such folder; correct the path")
    return Path(root)
