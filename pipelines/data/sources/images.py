"""Decode image files of the accepted formats to RGB pixels."""

import hashlib
import io
import re
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.data.config import MAX_PIXELS

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""PIL's names of the accepted formats; PIL would pass PostScript to another program."""
BITS_PER_SAMPLE = 258
"""TIFF tag."""
ORIENTATION = 0x0112
"""EXIF tag of the orientation."""
UPRIGHT = 1
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that makes an image upright, by its orientation."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_PIL = r"PIL\."
_OTHER_CONTENT = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer; run git lfs pull"),
    (b"<!doctype html", "a web page; download the image again"),
    (b"<html", "a web page; download the image again"),
    (b"%!ps", "a PostScript file, which is not accepted"),
)
"""First bytes of files that are often found in images' stead, and what they are."""


class UnreadableImageError(ValueError):
    """Image file that cannot be decoded."""


@dataclass(frozen=True)
class DecodedImage:
    """Decoded image of a source."""

    pixels: np.ndarray
    """RGB (height, width, 3), uint8."""
    jpeg: bytes | None = None
    """JPEG file that decodes to exactly these pixels; None if the source is no such file."""


def digest_of(content: bytes | np.ndarray) -> bytes:
    """Return a hash of an encoded image, or of pixels."""
    buffer = content if isinstance(content, bytes) else content.data
    return hashlib.blake2b(buffer, digest_size=16).digest()


def decode_image(encoded: bytes, name: str, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode an image file to upright RGB.

    A JPEG that needs no conversion is kept beside its pixels.
    Grey, CMYK, palette and 16-bit images are converted; transparency is dropped; of an animation
    the first frame is used.

    Raises:
        UnreadableImageError: the bytes are truncated, damaged, not an image of `FORMATS`, too
            large, or have values without a defined range.
    """
    _ignore_warnings_of_pil()
    # PIL's own limit would warn or raise before `max_pixels` is compared.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UnreadableImageError(
                    f"{name} has {width} x {height} pixels, more than max_pixels, {max_pixels:,}; "
                    "shrink it, or raise max_pixels if the memory suffices"
                )
            image.load()
            orientation = _orientation(image)
            is_plain = image.format == "JPEG" and image.mode == "RGB" and orientation == UPRIGHT
            upright = image
            if orientation in TRANSPOSITIONS:
                upright = image.transpose(TRANSPOSITIONS[orientation])
            pixels = _rgb(upright, image)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:  # PIL's message contains a pointer
        raise UnreadableImageError(
            f"{name} is not a readable image: {_describe_unknown(encoded)}"
        ) from error
    except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise UnreadableImageError(f"{name} is not a readable image: {error}") from error
    return DecodedImage(pixels, encoded if is_plain else None)


def parse_orientation(exif: bytes) -> int:
    """Return the orientation in EXIF, whose other tags may be broken."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return UPRIGHT
    try:
        [start] = struct.unpack_from(f"{order}L", tiff, 4)
        [count] = struct.unpack_from(f"{order}H", tiff, start)
        for position in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, position)
            if tag == ORIENTATION:
                form = {1: "B", 4: "L"}.get(kind, "H")
                [value] = struct.unpack_from(f"{order}{form}", tiff, position + 8)
                return value if value in TRANSPOSITIONS else UPRIGHT
    except struct.error:  # the block ends too early
        pass
    return UPRIGHT


def _ignore_warnings_of_pil() -> None:
    """Ignore PIL's warnings on broken metadata, which do not concern the pixels."""
    # `warnings.catch_warnings` is not safe in threads.
    if not any(entry[3] is not None and entry[3].pattern == _PIL for entry in _filters()):
        warnings.filterwarnings("ignore", module=_PIL)


def _filters() -> list[Any]:
    return [entry for entry in list(warnings.filters) if isinstance(entry[3], re.Pattern)]


def _orientation(image: Image.Image) -> int:
    """Return the orientation of a loaded image."""
    if image.format == "TIFF":  # PIL has transposed it
        return UPRIGHT
    exif = image.info.get("exif")
    if exif:
        return parse_orientation(exif)
    xmp = image.info.get("xmp", b"")
    found = _XMP_ORIENTATION.search(xmp if isinstance(xmp, bytes) else xmp.encode())
    return int(found[1]) if found else UPRIGHT


def _rgb(image: Image.Image, original: Image.Image) -> np.ndarray:
    """Convert an image of any mode to RGB.

    Args:
        image: upright image.
        original: image as it was opened, with format and tags.
    """
    if image.mode.startswith("I;16"):
        bits = 16
        if original.format == "TIFF":
            [bits] = original.tag_v2.get(BITS_PER_SAMPLE, (16,))  # pyright: ignore[reportAttributeAccessIssue]
        image = _scaled(image, (1 << bits) - 1)
    elif image.mode == "I":
        if original.format not in ("PPM", "PNG"):  # PIL scales the values of these to 16 bits
            raise ValueError(
                "32-bit or signed integers, which have no defined range; convert it to 8 or 16 bits"
            )
        image = _scaled(image, 65535)
    elif image.mode == "F":
        low, high = np.asarray(image).min(), np.asarray(image).max()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"floating-point values of {low:g} to {high:g}; only 0 to 1 is a defined range, "
                "convert it to 8 or 16 bits"
            )
        image = _scaled(image, 1)
    elif image.mode == "P":  # PIL converts a palette with transparency bytes only to RGBA
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _scaled(image: Image.Image, maximum: int) -> Image.Image:
    """Scale grey values to 8 bits, which PIL would clip."""
    values = np.asarray(image).astype(np.float32) * np.float32(255 / maximum)
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


def _describe_unknown(encoded: bytes) -> str:
    if not encoded:
        return "the file is empty"
    start = encoded[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for prefix, description in _OTHER_CONTENT:
        if start.startswith(prefix):
            return f"the file is {description}"
    return f"unknown format; the accepted ones are {', '.join(FORMATS)}"
