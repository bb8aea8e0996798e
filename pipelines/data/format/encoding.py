"""Encode images for storage, as JPEG or raw pixels, in several threads."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.data.config import DataConfig
from pipelines.data.format.ffcv_internals import file_format, image_field
from pipelines.data.sources.base import Images
from pipelines.data.sources.images import UnreadableImageError

if TYPE_CHECKING:
    from ffcv.fields import RGBImageField

PAGE_BYTES = 1 << 23
"""No sample crosses a page boundary, so that FFCV can cache the file page by page."""


@dataclass(frozen=True)
class Sample:
    """Encoded image, ready to be written."""

    record: np.ndarray
    """FFCV's metadata, of type `FileFormat.metadata`; the offset in the file is not set yet."""
    data: np.ndarray
    """Encoded bytes (bytes,), uint8."""


def encode(
    images: Images, config: DataConfig, threads: int
) -> Generator[Sample | UnreadableImageError]:
    """Encode images in threads and yield them in order.

    For an image that cannot be decoded, the error with its name is yielded instead.

    Raises:
        ValueError: an image is larger than a page.
        OSError: an image cannot be read.
    """
    field = image_field(
        is_jpeg=config.image_format == "jpeg",
        max_side=config.max_side,
        jpeg_quality=config.jpeg_quality,
    )
    labels = images.labels
    pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
    waiting: deque[Future[Sample | UnreadableImageError]] = deque()
    submitted = 0
    try:
        for index in range(len(labels)):
            while submitted < min(len(labels), index + 4 * threads):
                waiting.append(
                    pool.submit(_encode, images, submitted, labels[submitted], field, config)
                )
                submitted += 1
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(
    images: Images, index: int, label: int, field: "RGBImageField", config: DataConfig
) -> Sample | UnreadableImageError:
    record = np.zeros(1, file_format().metadata)
    record["f1"] = label
    buffers: list[np.ndarray] = []

    def allocate(size: int) -> tuple[int, np.ndarray]:
        buffers.append(np.empty(size, np.uint8))
        return 0, buffers[-1]

    try:
        decoded = images.read(index)
    except UnreadableImageError as error:
        return error
    pixels = decoded.pixels
    try:
        field.encode(record[0]["f0"], pixels, allocate)
    except Exception as error:  # OpenCV: a side of 0 after shrinking, or above 65,535
        return UnreadableImageError(
            f"{images.name(index)} of {pixels.shape[1]}x{pixels.shape[0]} pixels cannot be "
            f"stored: {error}"
        )
    data = buffers[0]
    is_original_size = (record[0]["f0"]["height"], record[0]["f0"]["width"]) == pixels.shape[:2]
    if config.image_format == "jpeg" and is_original_size and decoded.jpeg is not None:
        original = np.frombuffer(decoded.jpeg, np.uint8)
        if original.nbytes <= data.nbytes:
            data = original  # smaller, and lossless
    if data.nbytes > PAGE_BYTES:
        raise ValueError(
            f"{images.name(index)} needs {data.nbytes} bytes as {config.image_format}, more "
            f"than FFCV's page of {PAGE_BYTES}: set data.max_side, or data.image_format: jpeg"
        )
    return Sample(record, data)
