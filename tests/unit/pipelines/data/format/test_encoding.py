"""Encoding of images for storage."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data.format.beton import open_beton, write_beton
from pipelines.data.preparation.prepare import prepare
from pipelines.data.sources.base import ArrayImages
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
