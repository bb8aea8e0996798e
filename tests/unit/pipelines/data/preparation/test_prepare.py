"""Prepared files: what is in them, what is refused, and what a stopped writer leaves."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from ffcv.loader import Loader
from PIL import Image

from cluster import progress
from pipelines.data import DataConfig, UnreadableImageError, prepare, verify
from pipelines.data.format.beton import open_beton, write_beton
from pipelines.data.format.metadata import read_metadata
from pipelines.data.sources.factory import ArrayImages, open_source
from tests.support.image_files import (
    batches_of,
    encoded,
    folder_config,
    image_folder,
    pixels,
    read_epoch,
    with_settings,
)


@pytest.fixture
def config(tmp_path):
    return folder_config(image_folder(tmp_path / "tree"))


def test_a_prepared_split_holds_the_pixels_and_labels_of_its_source(config):
    info = prepare(config, 32)
    images, labels = read_epoch(batches_of(config, "test"))
    expected = np.stack([pixels(seed) for seed in (500, 501, 1500, 1501)])
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected)
    assert labels.tolist() == [0, 0, 1, 1]
    assert info.class_names == ("cat", "dog")
    assert info.num_samples == {"train": 8, "val": 4, "test": 4}
    assert info.samples_per_class["train"] == (4, 4)


def test_ffcv_itself_reads_a_prepared_file(config):
    prepare(config, 32)
    path = Path(config.prepared_dir) / "test.beton"
    loader = Loader(str(path), batch_size=3, num_workers=1, os_cache=False, drop_last=False)
    ours = read_epoch(batches_of(config, "test"))
    theirs = [(images.clone(), labels.clone()) for images, labels in loader]
    assert np.array_equal(
        np.concatenate([images for images, _ in theirs]), ours[0].permute(0, 2, 3, 1)
    )
    assert np.concatenate([labels for _, labels in theirs])[:, 0].tolist() == ours[1].tolist()


def test_the_sidecar_tells_sizes_counts_settings_and_a_checksum_that_holds(config):
    prepare(config, 32)
    path = Path(config.prepared_dir) / "train.beton"
    sidecar = read_metadata(path)
    assert sidecar.samples_per_class == [4, 4]
    assert tuple(sidecar.heights) == tuple(sidecar.widths) == (32, 32)
    assert sidecar.settings["data.validation_share"] == 0.34
    verify(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its SHA-256"):
        verify(path)


def test_prepared_files_are_used_again_without_their_source(config):
    first = prepare(config, 32)
    times = [path.stat().st_mtime_ns for path in sorted(Path(config.prepared_dir).iterdir())]
    Path(config.source_dir).rename(Path(config.source_dir).with_name("moved"))
    assert prepare(with_settings(config, source_dir=""), 32) == first
    assert times == [
        path.stat().st_mtime_ns for path in sorted(Path(config.prepared_dir).iterdir())
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_share": 0.2}, r"data.validation_share 0.34 \(now 0.2\)"),
        ({"split_seed": 3}, r"data.split_seed 0 \(now 3\)"),
        ({"image_format": "jpeg"}, r"data.image_format 'raw' \(now 'jpeg'\)"),
        ({"source": "parquet"}, r"data.source 'imagefolder' \(now 'parquet'\)"),
        (
            {"source_dir": "elsewhere"},
            r"data.source_dir .*set data.prepared_dir to another folder, or delete",
        ),
    ],
)
def test_files_of_other_settings_are_refused_with_the_difference(config, settings, message):
    prepare(config, 32)
    with pytest.raises(ValueError, match=message):
        prepare(with_settings(config, **settings), 32)


def test_a_missing_split_is_not_written_from_a_source_that_has_changed(config):
    prepare(config, 32)
    (Path(config.prepared_dir) / "test.beton").unlink()
    (Path(config.source_dir) / "train" / "cat" / "new.png").write_bytes(encoded(pixels(99)))
    with pytest.raises(ValueError, match="was prepared from other images"):
        prepare(config, 32)


def test_a_file_of_one_split_does_not_pass_for_another(config):
    prepare(config, 32)
    folder = Path(config.prepared_dir)
    for suffix in ("", ".json"):
        content = (folder / f"train.beton{suffix}").read_bytes()
        (folder / f"test.beton{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match="holds the train split, but lies where test belongs"):
        prepare(config, 32)


def test_splits_of_different_sources_are_not_used_together(config):
    prepare(config, 32)
    path = Path(config.prepared_dir) / "val.beton.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "source_sha256": "other"}))
    with pytest.raises(ValueError, match="one image may be in two splits"):
        prepare(config, 32)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA"])
def test_an_image_that_is_not_rgb_is_stored_as_rgb(tmp_path, mode):
    root = image_folder(tmp_path / "tree")
    image = Image.fromarray(pixels(7)).convert(mode)
    (root / "val" / "cat" / "000.png").unlink()
    (root / "val" / "cat" / "000.tif").write_bytes(encoded(image, "TIFF"))
    config = folder_config(root)
    prepare(config, 32)
    images, _ = read_epoch(batches_of(config, "test"))
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("content", [encoded(pixels(0), "JPEG")[:200], b"a text file"])
def test_an_unreadable_image_is_named_and_nothing_is_left(tmp_path, content):
    root = image_folder(tmp_path / "tree")
    broken = root / "train" / "dog" / "broken.jpg"
    broken.write_bytes(content)
    config = folder_config(root)
    with pytest.raises(UnreadableImageError, match=rf"{broken} is not a .*--skip-unreadable"):
        prepare(config, 32)
    left = [path.name for path in Path(config.prepared_dir).iterdir()]
    assert not [name for name in left if name.startswith("train") or name.endswith(".part")]


def test_unreadable_images_can_be_left_out_counted_and_listed(tmp_path):
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


def test_a_split_without_one_readable_image_is_refused(tmp_path):
    root = image_folder(tmp_path / "tree")
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="not one of 4 images can be read"):
        prepare(folder_config(root), 32, skip_unreadable=True)


def test_an_image_that_vanishes_is_an_error_even_where_unreadable_ones_are_skipped(
    config, tmp_path
):
    source = open_source(config, 32)
    (Path(config.source_dir) / "val" / "cat" / "000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"000.png"):
        write_beton(tmp_path / "x.beton", source.test, config, skip_unreadable=True)


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_images_are_shrunk_to_the_stored_size_and_never_enlarged(tmp_path, storage):
    root = image_folder(tmp_path / "tree", size=64)
    (root / "val" / "cat" / "000.png").write_bytes(encoded(pixels(3, 20, 30)))
    (root / "val" / "cat" / "001.png").write_bytes(encoded(pixels(3, 50, 100)))
    config = folder_config(root, max_side=40, image_format=storage, crop="random_resized")
    prepare(config, 32)
    sizes = open_beton(Path(config.prepared_dir) / "test.beton").sizes
    assert sizes.tolist() == [[20, 30], [20, 40], [40, 40], [40, 40]]


def test_an_image_too_large_for_a_page_names_the_settings_that_help(tmp_path, config):
    images = ArrayImages("x", np.zeros((1, 1700, 1700, 3), np.uint8), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"x image 0 takes 8670000 bytes .* set data.max_side"):
        write_beton(tmp_path / "x.beton", images, config)


def test_samples_that_fill_many_pages_are_all_found_again(tmp_path, config):
    shape = (7, 1000, 1000, 3)  # two to a page of 8 MiB
    values = np.arange(7, dtype=np.uint8)[:, None, None, None]
    images = ArrayImages("x", np.broadcast_to(values, shape), np.arange(7))
    write_beton(tmp_path / "x.beton", images, config)
    beton = open_beton(tmp_path / "x.beton")
    for sample, (begin, length) in enumerate(beton.table[:, :2]):
        assert (beton.data[begin : begin + length] == sample).all()
        assert begin // 2**23 == (begin + length - 1) // 2**23


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(config):
    folder = Path(config.prepared_dir)
    folder.mkdir()
    # Linux's device on which every write fails as on a full disk.
    (folder / "train.beton.part").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=r"train.beton cannot be written: No space left on device; free"
    ):
        prepare(config, 32)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_written_is_named(config):
    Path(config.prepared_dir).write_text("a file")
    with pytest.raises(
        OSError, match=r"data.prepared_dir is .*prepared: it cannot be made \(File exists"
    ):
        prepare(config, 32)


def test_a_file_whose_writer_died_before_its_sidecar_is_written_anew(config):
    prepare(config, 32)
    (Path(config.prepared_dir) / "val.beton.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"so val.beton was not finished"):
        batches_of(config, "val")
    prepare(config, 32)
    assert len(read_epoch(batches_of(config, "val"))[1]) == 4


def one_after_the_other(function, items):
    for number, item in enumerate(items):
        yield number, function(item)


def stopped_after(count):
    def spread(function, items):
        yield from one_after_the_other(function, items[:count])
        raise KeyboardInterrupt

    return spread


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("pipelines.data.preparation.writer.SHARD_IMAGES", 3)


def prepared_bytes(config: DataConfig) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(Path(config.prepared_dir).glob("*.beton*"))
    }


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_files_written_in_shards_have_the_bytes_of_those_written_at_once(
    tmp_path, small_shards, storage
):
    root = image_folder(tmp_path / "tree", train=9)
    (root / "train" / "dog" / "bad.jpg").write_bytes(b"")
    config = folder_config(root, image_format=storage)
    prepare(config, 32, skip_unreadable=True)
    sharded = with_settings(config, prepared_dir=str(tmp_path / "sharded"))
    prepare(sharded, 32, skip_unreadable=True, spread=one_after_the_other)
    assert prepared_bytes(sharded) == prepared_bytes(config)
    assert not list(Path(sharded.prepared_dir).glob("shards*"))


def test_a_stopped_start_leaves_its_shards_to_the_next_which_keeps_the_whole_ones(
    tmp_path, small_shards
):
    config = folder_config(image_folder(tmp_path / "tree", train=9))
    prepare(config, 32)
    sharded = with_settings(config, prepared_dir=str(tmp_path / "sharded"))
    with pytest.raises(KeyboardInterrupt):
        prepare(sharded, 32, spread=stopped_after(3))
    left = sorted(Path(sharded.prepared_dir).glob("shards-*/train-*.npz"))
    assert len(left) == 3
    content = bytearray(left[1].read_bytes())
    content[len(content) // 2] ^= 1
    left[1].write_bytes(content)
    times = [path.stat().st_mtime_ns for path in left]
    with pytest.raises(KeyboardInterrupt):
        prepare(sharded, 32, spread=stopped_after(3))
    again = [path.stat().st_mtime_ns for path in left]
    assert [old == new for old, new in zip(times, again, strict=True)] == [True, False, True]
    prepare(sharded, 32, spread=one_after_the_other)
    assert prepared_bytes(sharded) == prepared_bytes(config)


def test_the_log_tells_how_far_the_preparation_is(tmp_path, small_shards, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="cluster.progress")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    config = folder_config(image_folder(tmp_path / "tree"))
    prepare(config, 32, spread=one_after_the_other)
    told = [record.getMessage() for record in caplog.records]
    for beginning in ("encoding: 16 of 16 images, ", "writing train.beton.part: 8 of 8 images, "):
        [line] = [line for line in told if line.startswith(beginning)]
        assert re.search(r", \d+ images/s, 0 s left$", line)
    caplog.clear()
    monkeypatch.setattr(progress, "LOG_SECONDS", 1000.0)
    prepare(
        with_settings(config, prepared_dir=str(tmp_path / "quiet")), 32, spread=one_after_the_other
    )
    assert not any("images/s" in record.getMessage() for record in caplog.records)


def test_shards_of_other_settings_are_not_taken(tmp_path, small_shards):
    config = folder_config(image_folder(tmp_path / "tree", train=9))
    prepare(config, 32)
    sharded = with_settings(config, prepared_dir=str(tmp_path / "sharded"))
    with pytest.raises(KeyboardInterrupt):
        prepare(with_settings(sharded, split_seed=1), 32, spread=stopped_after(3))
    prepare(sharded, 32, spread=one_after_the_other)
    assert prepared_bytes(sharded) == prepared_bytes(config)


def test_an_unreadable_image_in_a_shard_is_named(tmp_path, small_shards):
    root = image_folder(tmp_path / "tree")
    broken = root / "train" / "dog" / "broken.jpg"
    broken.write_bytes(b"a text file")
    with pytest.raises(UnreadableImageError, match=rf"{broken} is not a .*--skip-unreadable"):
        prepare(folder_config(root), 32, spread=one_after_the_other)


def test_a_jpeg_that_needs_no_change_and_is_smaller_is_stored_as_it_is(tmp_path):
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
