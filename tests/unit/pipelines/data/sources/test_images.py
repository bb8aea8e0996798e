"""Decoding of encoded images."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from pipelines.data.sources.images import UnreadableImageError, decode_image, parse_orientation
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


def grey(values, kind) -> Image.Image:
    return Image.fromarray(np.array([values], kind))


def pgm(values, maximum) -> bytes:
    form = ">u2" if maximum > 255 else "u1"
    return f"P5 {len(values)} 1 {maximum}\n".encode() + np.array(values, form).tobytes()


def tiff(data: bytes, width: int, bits: int, sample_format: int = 1) -> bytes:
    """Build a file of one row of grey values."""
    tags = {
        256: (4, width), 257: (4, 1), 258: (3, bits), 259: (3, 1), 262: (3, 1), 273: (4, 0),
        277: (3, 1), 278: (4, 1), 279: (4, len(data)), 339: (3, sample_format),
    }  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = (4, start)
    entries = b"".join(
        struct.pack("<HHLL", tag, kind, 1, value) for tag, (kind, value) in tags.items()
    )
    return struct.pack("<2sHLH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


def packed(values) -> bytes:
    """Pack pairs of 12-bit values."""
    pairs = zip(values[::2], values[1::2], strict=True)
    return b"".join(int(first << 12 | second).to_bytes(3, "big") for first, second in pairs)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (pgm([0, 128, 255], 255), [0, 128, 255]),
        (pgm([0, 2048, 4095], 4095), [0, 128, 255]),
        (pgm([0, 32768, 65535], 65535), [0, 128, 255]),
        (encoded(grey([0, 32896, 65535], np.uint16), "TIFF"), [0, 128, 255]),
        (encoded(grey([0, 32896, 65535], np.uint16), "PNG"), [0, 128, 255]),
        (tiff(packed([0, 2048, 4095, 0]), 4, 12), [0, 128, 255, 0]),
        (encoded(grey([0.0, 0.5, 1.0], np.float32), "TIFF"), [0, 128, 255]),
    ],
)
def test_values_with_a_defined_range_are_scaled(content, expected):
    decoded = decode_image(content, "x").pixels
    assert np.abs(decoded[0, :, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([0, 70000], np.int32, "32-bit or signed integers, which have no defined range"),
        ([-5, 100], np.int16, "no defined range"),
        ([0.0, 255.0], np.float32, "floating-point values of 0 to 255; only 0 to 1"),
        ([-1.0, 1.0], np.float32, "floating-point values of -1 to 1"),
        ([0.0, np.nan], np.float32, "floating-point values of nan to nan"),
    ],
)
def test_values_without_a_defined_range_are_unreadable(values, kind, message):
    sample_format = 3 if kind is np.float32 else 2
    data = np.array(values, kind).tobytes()
    content = tiff(data, len(values), 8 * np.dtype(kind).itemsize, sample_format)
    with pytest.raises(UnreadableImageError, match=rf"^x.tif is not a readable image: .*{message}"):
        decode_image(content, "x.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_image_of_every_orientation_is_decoded_upright(orientation, form):
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:, :8] = 255  # the left half is white
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(turned))
    exif = image.getexif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, form, exif=exif, quality=100)
    decoded = decode_image(file.getvalue(), "x")
    assert decoded.pixels.shape == (8, 16, 3)
    assert np.abs(decoded.pixels.astype(int) - upright).max() <= 8
    assert (decoded.jpeg is not None) == (form == "JPEG" and orientation == 1)


def broken_exif(order, extra) -> bytes:
    """EXIF with orientation 6 beside a broken tag."""
    mark = b"II" if order == "<" else b"MM"
    entries = [struct.pack(f"{order}HHLHH", 0x0112, 3, 1, 6, 0), extra]
    return b"Exif\0\0" + mark + struct.pack(f"{order}HLH", 42, 8, len(entries)) + b"".join(entries)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "kind",
    ["string for a number", "offset beyond the end", "unknown type", "truncated", "negative"],
)
def test_orientation_beside_broken_tags_is_applied(order, kind):
    extra = {
        "string for a number": struct.pack(f"{order}HHL4s", 0x0128, 2, 4, b"ab\0\0"),
        "offset beyond the end": struct.pack(f"{order}HHLL", 0x010F, 2, 500, 100_000),
        "unknown type": struct.pack(f"{order}HHLL", 0x0131, 77, 1, 1),
        "truncated": b"\x01",
        "negative": struct.pack(f"{order}HHLl", 0xA405, 9, 1, -70_000),
    }[kind]
    file = io.BytesIO()
    Image.fromarray(pixels(0, 8, 16)).save(file, "JPEG", exif=broken_exif(order, extra))
    decoded = decode_image(file.getvalue(), "x")
    assert decoded.pixels.shape == (16, 8, 3)
    assert decoded.jpeg is None


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II", b"garbage" * 9, bytes(40)])
def test_unusable_exif_is_ignored(exif):
    assert parse_orientation(exif) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer; run"),
        (b"\n<!DOCTYPE html><html>404", "a web page; download"),
        (b"%PDF-1.7", "unknown format; the accepted ones are AVIF, BMP"),
        (b"", "the file is empty"),
    ],
)
def test_file_of_another_kind_is_explained(content, message):
    with pytest.raises(UnreadableImageError, match=rf"x.jpg is not a readable image: .*{message}"):
        decode_image(content, "x.jpg")


@pytest.mark.parametrize("form", ["ICO", "PCX", "TGA", "JPEG2000", "SGI"])
def test_formats_that_are_not_listed_are_not_decoded(form):
    with pytest.raises(UnreadableImageError, match="unknown format"):
        decode_image(encoded(pixels(0), form), "x.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "BMP"])
def test_pixel_limit_is_compared_before_decoding(form):
    content = encoded(pixels(0, 40, 50), form)
    assert decode_image(content, "x", 2000).pixels.shape == (40, 50, 3)
    cut = content if form == "TIFF" else content[:-9]  # damaged, if decoded
    with pytest.raises(
        UnreadableImageError, match="x has 50 x 40 pixels, more than max_pixels, 1,"
    ):
        decode_image(cut, "x", 1999)


def test_small_file_of_a_huge_image_is_rejected_at_once():
    file = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(file, "PNG")
    with pytest.raises(UnreadableImageError, match="13000 x 13000 pixels, more than max_pixels"):
        decode_image(file.getvalue(), "x")
