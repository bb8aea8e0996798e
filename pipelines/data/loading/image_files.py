"""Image files as a trained network's input, decoded and resized by PIL."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipelines.data.config import MAX_PIXELS
from pipelines.data.loading.augmentation import evaluation_boxes
from pipelines.data.sources.files import printable, read_image_file
from pipelines.data.sources.images import UnreadableImageError, decode_image
from ranet.model.metadata import Preprocessing


def read_images(
    paths: Sequence[str], preprocessing: Preprocessing, max_pixels: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return images by path, and one sentence per unreadable file."""
    images: dict[str, np.ndarray] = {}
    errors: list[str] = []
    for path in paths:
        try:
            images[path] = read_image(path, preprocessing, max_pixels)
        except (UnreadableImageError, OSError) as error:
            errors.append(str(error))
    return images, errors


def read_image(path: str, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file for the network: (3, size, size), uint8."""
    content = read_image_file(path)
    return preprocess(decode_image(content, printable(path), max_pixels).pixels, preprocessing)


def preprocess(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Crop and resize an image (height, width, 3), uint8.

    Returns:
        Image of the network's size (3, size, size), uint8.
    """
    size = preprocessing.image_size
    box = evaluation_boxes(size, np.array([pixels.shape[:2]]), preprocessing.crop_share)[0]
    top, left, side = (int(value) for value in box[:3])
    square = pixels[top : top + side, left : left + side]
    resampling = Image.Resampling.BOX if side > size else Image.Resampling.BILINEAR
    resized = Image.fromarray(square).resize((size, size), resampling)
    return np.asarray(resized).transpose(2, 0, 1)
