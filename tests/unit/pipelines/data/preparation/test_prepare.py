"""Preparation of the three files of a data set."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.data.preparation.prepare import prepare
from pipelines.data.sources.images import UnreadableImageError
from tests.support.image_files import (
    batches_of,
    encoded,
    folder_config,
    image_folder,
    pixels,
    read_epoch,
    with_settings,
)


def test_prepared_split_contains_pixels_and_labels_of_its_source(config):
    info = prepare(config, 32)
    images, labels = read_epoch(batches_of(config, "test"))
    expected = np.stack([pixels(seed) for seed in (500, 501, 1500, 1501)])
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected)
    assert labels.tolist() == [0, 0, 1, 1]
    assert info.class_names == ("cat", "dog")
    assert info.num_samples == {"train": 8, "val": 4, "test": 4}
    assert info.samples_per_class["train"] == (4, 4)


def test_prepared_files_are_reused_without_their_source(config):
    first = prepare(config, 32)
    times = [path.stat().st_mtime_ns for path in sorted(Path(config.prepared_dir).iterdir())]
    Path(config.source_dir).rename(Path(config.source_dir).with_name("moved"))
    assert prepare(with_settings(config, source_dir=""), 32) == first
    assert times == [
        path.stat().st_mtime_ns for path in sorted(Path(config.prepared_dir).iterdir())
    ]


def test_missing_split_is_not_written_from_a_changed_source(config):
    prepare(config, 32)
    (Path(config.prepared_dir) / "test.beton").unlink()
    (Path(config.source_dir) / "train" / "cat" / "new.png").write_bytes(encoded(pixels(99)))
    with pytest.raises(ValueError, match="was prepared from other images"):
        prepare(config, 32)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(encoded(pixels(0), "JPEG")[:200], id="truncated"),
        pytest.param(b"a text file", id="text"),
    ],
)
def test_unreadable_image_is_named_in_error_and_no_file_remains(tmp_path, content):
    root = image_folder(tmp_path / "tree")
    broken = root / "train" / "dog" / "broken.jpg"
    broken.write_bytes(content)
    config = folder_config(root)
    with pytest.raises(UnreadableImageError, match=rf"{broken} is not a .*--skip-unreadable"):
        prepare(config, 32)
    left = [path.name for path in Path(config.prepared_dir).iterdir()]
    assert not [name for name in left if name.startswith("train") or name.endswith(".part")]


def test_skipped_unreadable_images_are_counted_and_listed(tmp_path):
    root = image_folder(tmp_path / "tree")
    broken = root / "val" / "cat" / "000.jpg"
    broken.write_bytes(b"a text file")
    config = folder_config(root)
    info = prepare(config, 32, skip_unreadable=True)
    assert info.num_samples["test"] == 4
    assert info.samples_per_class["test"] == (2, 2)
    assert len(info.skipped["test"]) == 1
    assert str(broken) in info.skipped["test"][0]
    assert read_epoch(batches_of(config, "test"))[1].tolist() == [0, 0, 1, 1]


def test_split_without_readable_images_raises_error(tmp_path):
    root = image_folder(tmp_path / "tree")
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 4 images can be read"):
        prepare(folder_config(root), 32, skip_unreadable=True)


def test_full_disk_raises_error_and_no_file_remains(config):
    folder = Path(config.prepared_dir)
    folder.mkdir()
    # Linux's device on which every write fails as on a full disk.
    (folder / "train.beton.part").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=r"train.beton cannot be written: No space left on device; free"
    ):
        prepare(config, 32)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_unwritable_prepared_dir_is_named_in_error(config):
    Path(config.prepared_dir).write_text("a file")
    with pytest.raises(
        OSError, match=r"data.prepared_dir is .*prepared: it cannot be created \(File exists"
    ):
        prepare(config, 32)


def test_file_without_metadata_file_is_written_again(config):
    prepare(config, 32)
    (Path(config.prepared_dir) / "val.beton.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"so val.beton is unfinished"):
        batches_of(config, "val")
    prepare(config, 32)
    assert len(read_epoch(batches_of(config, "val"))[1]) == 4
