"""Sharded preparation."""

import logging
import re
from pathlib import Path

import pytest

from cluster import progress
from pipelines.data.preparation.prepare import prepare
from pipelines.data.sources.images import UnreadableImageError
from tests.support.image_files import (
    folder_config,
    image_folder,
    one_after_the_other,
    prepared_bytes,
    stopped_after,
    with_settings,
)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("pipelines.data.preparation.shards.SHARD_IMAGES", 3)


@pytest.mark.parametrize("storage", ["raw", "jpeg"])
def test_files_joined_from_shards_equal_files_written_directly(tmp_path, small_shards, storage):
    root = image_folder(tmp_path / "tree", train=9)
    (root / "train" / "dog" / "bad.jpg").write_bytes(b"")
    config = folder_config(root, image_format=storage)
    prepare(config, 32, skip_unreadable=True)
    sharded = with_settings(config, prepared_dir=str(tmp_path / "sharded"))
    prepare(sharded, 32, skip_unreadable=True, parallel_map=one_after_the_other)
    assert prepared_bytes(sharded) == prepared_bytes(config)
    assert not list(Path(sharded.prepared_dir).glob("shards*"))


def test_stopped_preparation_resumes_from_its_undamaged_shards(tmp_path, small_shards):
    config = folder_config(image_folder(tmp_path / "tree", train=9))
    prepare(config, 32)
    sharded = with_settings(config, prepared_dir=str(tmp_path / "sharded"))
    with pytest.raises(KeyboardInterrupt):
        prepare(sharded, 32, parallel_map=stopped_after(3))
    left = sorted(Path(sharded.prepared_dir).glob("shards-*/train-*.npz"))
    assert len(left) == 3
    content = bytearray(left[1].read_bytes())
    content[len(content) // 2] ^= 1
    left[1].write_bytes(content)
    times = [path.stat().st_mtime_ns for path in left]
    with pytest.raises(KeyboardInterrupt):
        prepare(sharded, 32, parallel_map=stopped_after(3))
    again = [path.stat().st_mtime_ns for path in left]
    assert [old == new for old, new in zip(times, again, strict=True)] == [True, False, True]
    prepare(sharded, 32, parallel_map=one_after_the_other)
    assert prepared_bytes(sharded) == prepared_bytes(config)


def test_shards_of_other_settings_are_not_reused(tmp_path, small_shards):
    config = folder_config(image_folder(tmp_path / "tree", train=9))
    prepare(config, 32)
    sharded = with_settings(config, prepared_dir=str(tmp_path / "sharded"))
    with pytest.raises(KeyboardInterrupt):
        prepare(with_settings(sharded, split_seed=1), 32, parallel_map=stopped_after(3))
    prepare(sharded, 32, parallel_map=one_after_the_other)
    assert prepared_bytes(sharded) == prepared_bytes(config)


def test_unreadable_image_in_shard_is_named_in_error(tmp_path, small_shards):
    root = image_folder(tmp_path / "tree")
    broken = root / "train" / "dog" / "broken.jpg"
    broken.write_bytes(b"a text file")
    with pytest.raises(UnreadableImageError, match=rf"{broken} is not a .*--skip-unreadable"):
        prepare(folder_config(root), 32, parallel_map=one_after_the_other)


def test_preparation_logs_its_progress(tmp_path, small_shards, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="cluster")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    config = folder_config(image_folder(tmp_path / "tree"))
    prepare(config, 32, parallel_map=one_after_the_other)
    messages = [record.getMessage() for record in caplog.records]
    for beginning in ("encoding: 16 of 16 images, ", "writing train.beton.part: 8 of 8 images, "):
        [line] = [line for line in messages if line.startswith(beginning)]
        assert re.search(r", \d+ images/s, 0 s left$", line)
    caplog.clear()
    monkeypatch.setattr(progress, "LOG_SECONDS", 1000.0)
    prepare(
        with_settings(config, prepared_dir=str(tmp_path / "quiet")),
        32,
        parallel_map=one_after_the_other,
    )
    assert not any("images/s" in record.getMessage() for record in caplog.records)
