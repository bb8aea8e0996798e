"""Decoding of encoded images."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.data.sources.images import UnreadableImageError, decode_image
from tests.support.image_files import (
    encoded,
    pixels,
)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_image_of_any_mode_is_decoded_to_rgb(mode):
    grey = Image.fromarray(np.full((5, 7), 200, np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 7), 200 * 256, np.uint16))
    elif mode == "P":
        image = grey.convert("RGB").quantize()
    else:
        image = grey.convert("RGB").convert(mode)
    decoded = decode_image(encoded(image, "TIFF"), "x").pixels
    assert decoded.shape == (5, 7, 3)
    assert decoded.dtype == np.uint8
    expected = 255 if mode == "1" else 200
    assert np.abs(np.median(decoded) - expected) <= 1


def test_palette_with_transparency_is_decoded_to_rgb():
    image = Image.fromarray(pixels(0)).convert("P")
    image.info["transparency"] = bytes(range(256))
    assert decode_image(encoded(image, "PNG"), "x").pixels.shape == (32, 32, 3)


def test_exif_rotated_image_is_decoded_upright():
    image = Image.fromarray(pixels(0, 4, 8))
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    assert np.array_equal(decode_image(file.getvalue(), "x").pixels, np.rot90(pixels(0, 4, 8), -1))


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "zeros"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_damaged_image_raises_error_with_its_name(kind, form):
    whole = encoded(pixels(0, 64, 64), form)
    content = {
        "truncated": whole[: len(whole) // 2],
        "text": b"not an image",
        "empty": b"",
        "zeros": bytes(len(whole)),
    }[kind]
    with pytest.raises(UnreadableImageError, match=r"^cat/1.jpg is not a readable image"):
        decode_image(content, "cat/1.jpg")
