"""Data sets shared by the tests of the data."""

from pathlib import Path

import pytest

from pipelines.data.preparation.prepare import prepare
from tests.support.image_files import (
    encoded,
    folder_config,
    image_folder,
    pixels,
    with_settings,
)


@pytest.fixture
def config(tmp_path):
    return folder_config(image_folder(tmp_path / "tree"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """20 training images of 32x32 pixels, 10 validation images, 6 test images."""
    root = image_folder(tmp_path_factory.mktemp("small") / "tree", train=15, val=3)
    config = folder_config(root)
    prepare(config, 32)
    return config


@pytest.fixture(scope="session")
def prepared_jpeg(tmp_path_factory):
    """Images of 80x64 pixels, stored as JPEG."""
    root = image_folder(tmp_path_factory.mktemp("large") / "tree", train=4)
    for path in root.rglob("*.png"):
        seed = int(path.stem) + (10 if "train" in path.parts else 0)
        path.write_bytes(encoded(pixels(seed, 80, 64)))
    config = folder_config(root, image_format="jpeg", jpeg_quality=95, crop="random_resized")
    prepare(config, 32)
    return config


@pytest.fixture
def copied(prepared, tmp_path):
    """A prepared data set that a test may damage."""
    for path in Path(prepared.prepared_dir).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return with_settings(prepared, prepared_dir=str(tmp_path))
