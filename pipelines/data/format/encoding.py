"""Encode images for storage, as JPEG or raw pixels, in several threads."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Semaphore
from typing import TYPE_CHECKING

import cv2
import numpy as np

from pipelines.data.config import DataConfig
from pipelines.data.format.ffcv_internals import accepts_jpeg, file_format, image_field
from pipelines.data.sources.base import Images
from pipelines.data.sources.files import printable
from pipelines.data.sources.images import DecodedImage, UnreadableImageError, digest_of

if TYPE_CHECKING:
    from ffcv.fields import RGBImageField

PAGE_BYTES = 1 << 23
"""No sample crosses a page boundary, so that FFCV can cache the file page by page."""
MAX_SIDE = 65_535
"""Longest side of a JPEG, and of an image in FFCV's metadata."""
MEASURED_PIXELS = 1 << 16
"""Of larger images only some rows contribute to mean and standard deviation."""


@dataclass(frozen=True)
class Sample:
    """Encoded image, ready to be written."""

    record: np.ndarray
    """FFCV's metadata, of type `FileFormat.metadata`; the offset in the file is not set yet."""
    data: np.ndarray
    """Encoded bytes (bytes,), uint8."""
    digest: bytes
    """Hash of the image's content in the source."""
    moments: np.ndarray
    """Mean of red, green and blue, and of their squares, from 0 to 1: (6,), float64."""


@dataclass(frozen=True)
class Encoder:
    """Encoder of single images, shared by the threads."""

    images: Images
    config: DataConfig
    field: "RGBImageField"
    decoders: Semaphore
    """Bounds the number of images that are decoded at once, and thereby the memory."""

    def encode(self, index: int) -> Sample | UnreadableImageError:
        """Encode an image, or return the error of an unreadable one."""
        try:
            content = self.images.content(index)
            with self.decoders:
                decoded = self.images.decode(index, content)
                record, data = self._store(index, decoded)
                moments = measure(decoded.pixels)
        except UnreadableImageError as error:
            return error
        record["f1"] = self.images.labels[index]
        return Sample(record, data, digest_of(content), moments)

    def _store(self, index: int, decoded: DecodedImage) -> tuple[np.ndarray, np.ndarray]:
        """Return FFCV's metadata and the bytes of an image."""
        pixels = decoded.pixels
        self._check_sides(index, pixels)
        record = np.zeros(1, file_format().metadata)
        buffers: list[np.ndarray] = []

        def allocate(size: int) -> tuple[int, np.ndarray]:
            buffers.append(np.empty(size, np.uint8))
            return 0, buffers[-1]

        self.field.encode(record[0]["f0"], pixels, allocate)
        data = buffers[0]
        height, width = pixels.shape[:2]
        is_original_size = (record[0]["f0"]["height"], record[0]["f0"]["width"]) == (height, width)
        if self.config.image_format == "jpeg" and is_original_size and decoded.jpeg is not None:
            # The original is lossless, and kept if it is smaller.
            is_smaller = len(decoded.jpeg) <= data.nbytes
            if is_smaller and accepts_jpeg(decoded.jpeg, height, width):
                data = np.frombuffer(decoded.jpeg, np.uint8)
        if data.nbytes > PAGE_BYTES:
            raise ValueError(
                f"{printable(self.images.name(index))} needs {data.nbytes} bytes as "
                f"{self.config.image_format}, more than FFCV's page of {PAGE_BYTES}: set "
                "data.max_side, or data.image_format: jpeg"
            )
        return record, data

    def _check_sides(self, index: int, pixels: np.ndarray) -> None:
        """Check that the stored image has sides of 1 to `MAX_SIDE` pixels."""
        height, width = pixels.shape[:2]
        shorter, longer = min(height, width), max(height, width)
        limit = self.config.max_side or longer
        name = f"{printable(self.images.name(index))} of {width} x {height} pixels cannot be stored"
        if longer > limit and int(limit / longer * shorter) < 1:
            raise UnreadableImageError(
                f"{name}: shrunk to data.max_side, {limit}, its shorter side would have no pixel; "
                "crop it or raise data.max_side"
            )
        if min(longer, limit) > MAX_SIDE:
            raise UnreadableImageError(
                f"{name}: a side may have {MAX_SIDE} pixels; set data.max_side"
            )


def measure(pixels: np.ndarray) -> np.ndarray:
    """Return mean and mean square of each channel, from 0 to 1.

    Returns:
        The means of red, green and blue, then the means of their squares (6,).
    """
    step = max(pixels.shape[0] * pixels.shape[1] // MEASURED_PIXELS, 1)
    mean, deviation = cv2.meanStdDev(pixels[:: min(step, pixels.shape[0])])
    mean, deviation = mean[:, 0] / 255, deviation[:, 0] / 255
    return np.concatenate([mean, mean**2 + deviation**2])


def encode(
    images: Images, config: DataConfig, *, threads: int, decoders: int
) -> Generator[Sample | UnreadableImageError]:
    """Encode images in threads and yield them in order.

    For an image that cannot be decoded, the error with its name is yielded instead.

    Args:
        images: the images.
        config: settings of the encoding.
        threads: number of threads that read images.
        decoders: max number of images that are decoded at once.

    Raises:
        ValueError: an image is larger than a page.
        OSError: an image cannot be read.
    """
    field = image_field(
        is_jpeg=config.image_format == "jpeg",
        max_side=config.max_side,
        jpeg_quality=config.jpeg_quality,
    )
    encoder = Encoder(images, config, field, Semaphore(decoders))
    total = len(images.labels)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
    waiting: deque[Future[Sample | UnreadableImageError]] = deque()
    submitted = 0
    try:
        for index in range(total):
            while submitted < min(total, index + 4 * threads):
                waiting.append(pool.submit(encoder.encode, submitted))
                submitted += 1
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
