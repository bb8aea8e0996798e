"""Encoded images of any kind as RGB pixels."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

ORIENTATION = 0x0112
"""EXIF's tag."""
UPRIGHT = 1


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded; the message names it and says why."""


@dataclass(frozen=True)
class DecodedImage:
    """An image as its source has it."""

    pixels: np.ndarray
    """RGB (height, width, 3), uint8."""
    jpeg: bytes | None = None
    """The JPEG file that decodes to just these pixels, where the source is one."""


def decode_image(encoded: bytes, name: str) -> DecodedImage:
    """Decode an image file's bytes as `decode_rgb` does, and keep a JPEG that needs no conversion.

    Raises:
        UnreadableImageError: `encoded` is truncated, damaged or no image.
    """
    pixels = decode_rgb(encoded, name)
    with Image.open(io.BytesIO(encoded)) as image:
        is_plain = (
            image.format == "JPEG"
            and image.mode == "RGB"
            and image.getexif().get(ORIENTATION, UPRIGHT) == UPRIGHT
        )
    return DecodedImage(pixels, encoded if is_plain else None)


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
    except UnidentifiedImageError as error:  # its text holds an address in memory
        raise UnreadableImageError(f"{name} is not a readable image: unknown format") from error
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise UnreadableImageError(f"{name} is not a readable image: {error}") from error
