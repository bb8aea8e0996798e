"""Decode image files of any format to RGB pixels."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

ORIENTATION = 0x0112
"""EXIF tag of the orientation."""
UPRIGHT = 1


class UnreadableImageError(ValueError):
    """Image file that cannot be decoded."""


@dataclass(frozen=True)
class DecodedImage:
    """Decoded image of a source."""

    pixels: np.ndarray
    """RGB (height, width, 3), uint8."""
    jpeg: bytes | None = None
    """JPEG file that decodes to exactly these pixels; None if the source is no such file."""


def decode_image(encoded: bytes, name: str) -> DecodedImage:
    """Decode with `decode_rgb`, and keep a JPEG that needs no conversion.

    Raises:
        UnreadableImageError: the bytes are truncated, damaged or not an image.
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
    """Decode an image file to upright RGB (height, width, 3), uint8.

    Grey, CMYK, palette and 16-bit images are converted; transparency is dropped.

    Raises:
        UnreadableImageError: the bytes are truncated, damaged or not an image.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):  # PIL would clip 16-bit values to white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode == "P":  # PIL converts a palette with transparency bytes only to RGBA
                image = image.convert("RGBA")
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:  # PIL's message contains a pointer
        raise UnreadableImageError(f"{name} is not a readable image: unknown format") from error
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise UnreadableImageError(f"{name} is not a readable image: {error}") from error
