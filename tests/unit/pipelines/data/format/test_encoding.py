"""Encoding of images for storage."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.config import DataConfig
from pipelines.data.format.beton import open_beton, write_beton
from pipelines.data.format.encoding import measure
from pipelines.data.preparation.prepare import prepare
from pipelines.data.sources.base import ArrayImages
from pipelines.data.sources.images import UnreadableImageError
from tests.support.image_files import (
    batches_of,
    encoded,
    folder_config,
    image_folder,
    pixels,
    read_epoch,
)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_image_of_other_mode_is_stored_as_rgb(tmp_path, mode):
    root = image_folder(tmp_path / "tree")
    image = Image.fromarray(pixels(7)).convert(mode)
    (root / "val" / "cat" / "000.png").unlink()
    (root / "val" / "cat" / "000.tif").write_bytes(encoded(image, "TIFF"))
    config = folder_config(root)
    prepare(config, 32)
    images, _ = read_epoch(batches_of(config, "test"))
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_images_are_shrunk_to_max_side_and_never_enlarged(tmp_path, storage):
    root = image_folder(tmp_path / "tree", size=64)
    (root / "val" / "cat" / "000.png").write_bytes(encoded(pixels(3, 20, 30)))
    (root / "val" / "cat" / "001.png").write_bytes(encoded(pixels(3, 50, 100)))
    config = folder_config(root, max_side=40, image_format=storage, crop="random_resized")
    prepare(config, 32)
    sizes = open_beton(Path(config.prepared_dir) / "test.beton").sizes
    assert sizes.tolist() == [[20, 30], [20, 40], [40, 40], [40, 40]]


def test_image_larger_than_a_page_raises_error_with_helpful_settings(tmp_path, config):
    images = ArrayImages("x", np.zeros((1, 1700, 1700, 3), np.uint8), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"x image 0 needs 8670000 bytes .* set data.max_side"):
        write_beton(tmp_path / "x.beton", images, config)


def test_smaller_jpeg_that_needs_no_conversion_is_stored_unchanged(tmp_path):
    root = image_folder(tmp_path / "tree", size=64)
    originals = {
        "000": encoded(Image.fromarray(pixels(1, 64, 48)), "JPEG"),
        "001": encoded(Image.fromarray(pixels(2, 64, 96)), "JPEG"),  # will be shrunk
        "002": encoded(Image.fromarray(pixels(3, 64, 48)).convert("L"), "JPEG"),
    }
    for path in (root / "val" / "cat").iterdir():
        path.unlink()
    for name, content in originals.items():
        (root / "val" / "cat" / f"{name}.jpg").write_bytes(content)
    config = folder_config(
        root, max_side=64, image_format="jpeg", jpeg_quality=100, crop="random_resized"
    )
    prepare(config, 32)
    beton = open_beton(Path(config.prepared_dir) / "test.beton")
    stored = [beton.data[start : start + length].tobytes() for start, length in beton.table[:3, :2]]
    taken = [content in originals.values() for content in stored]
    assert taken == [True, False, False]
    images, _ = read_epoch(batches_of(config, "test", image_size=64))
    assert images.shape == (5, 3, 64, 64)


def jpeg_with(kind: str) -> bytes:
    """Return a JPEG that PIL decodes and libjpeg warns about."""
    content = encoded(Image.fromarray(pixels(1, 64, 48)), "JPEG")
    end, tables, version = (
        content.rindex(b"\xff\xd9"), content.index(b"\xff\xdb"), content.index(b"JFIF\0") + 5,
    )  # fmt: skip
    return {
        "zeros before the end": content[:end] + bytes(500) + content[end:],
        "zeros between segments": content[:tables] + bytes(5) + content[tables:],
        "version 2": content[:version] + b"\x02" + content[version + 1 :],
        "no end": content[:end] + bytes(2000),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["zeros before the end", "zeros between segments", "version 2", "no end"]
)
def test_jpeg_that_the_decoder_of_the_loader_rejects_is_encoded_again(tmp_path, kind):
    root = image_folder(tmp_path / "tree", size=64)
    for path in (root / "val" / "cat").iterdir():
        path.unlink()
    (root / "val" / "cat" / "000.jpg").write_bytes(jpeg_with(kind))
    config = folder_config(root, image_format="jpeg", jpeg_quality=100, crop="random_resized")
    prepare(config, 32)
    beton = open_beton(Path(config.prepared_dir) / "test.beton")
    start, length = beton.table[0, :2]
    assert beton.data[start : start + length].tobytes() != jpeg_with(kind)
    images, _ = read_epoch(batches_of(config, "test", image_size=48))
    plain = Image.open(io.BytesIO(jpeg_with("zeros before the end"))).convert("RGB")
    middle = np.asarray(plain)[11:53, 3:45].mean()
    assert abs(images[0].float().mean() - middle) < 3


@pytest.mark.parametrize(
    ("width", "height", "max_side", "message"),
    [
        (2000, 3, 500, "2000 x 3 pixels cannot be stored: shrunk to data.max_side, 500, its sh"),
        (3, 2000, 500, "3 x 2000 pixels cannot be stored: shrunk to data.max_side, 500, its sh"),
        (70_000, 1, 0, "70000 x 1 pixels cannot be stored: a side may have 65535 pixels; set"),
    ],
)
@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_thin_image_is_unreadable_by_name(tmp_path, width, height, max_side, message, storage):
    pixels = np.zeros((1, height, width, 3), np.uint8)
    images = ArrayImages("x", np.concatenate([pixels]), np.zeros(1, np.int64))
    config = DataConfig(max_side=max_side, image_format=storage)
    with pytest.raises(UnreadableImageError, match=rf"x image 0 of {message}.*--skip-unreadable"):
        write_beton(tmp_path / "x.beton", images, config)


def test_moments_are_those_of_the_pixels():
    image = pixels(3, 40, 50)
    moments = measure(image)
    assert moments[:3] == pytest.approx(image.reshape(-1, 3).mean(axis=0) / 255, abs=1e-6)
    squares = (image.reshape(-1, 3) / 255) ** 2
    assert moments[3:] == pytest.approx(squares.mean(axis=0), abs=1e-6)
    large = pixels(4, 1000, 1300)
    assert measure(large) == pytest.approx(
        [*(large / 255).mean(axis=(0, 1)), *((large / 255) ** 2).mean(axis=(0, 1))], abs=0.005
    )
