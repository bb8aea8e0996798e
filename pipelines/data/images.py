"""Encoded images of any kind as RGB pixels."""

import io

import numpy as np
from PIL import Image, ImageOps


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded; the message names it and says why."""


def decode_rgb(encoded: bytes, name: str) -> np.ndarray:
    """Decode an image file's bytes to RGB (height, width, 3), uint8, upright by its EXIF tag.

    Grey, CMYK, palette and 16-bit images are converted; transparency is dropped.

    Raises:
        UnreadableImageError: `encoded` is truncated, damaged or no image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):  # PIL would clip these to white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode == "P":  # its transparency may be bytes, which PIL takes to RGBA only
                image = image.convert("RGBA")
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise UnreadableImageError(f"{name} is not a readable image: {error}") from error
