"""Metadata files of prepared splits."""

import json
from pathlib import Path

import pytest

from pipelines.data.format.metadata import read_metadata, verify
from pipelines.data.preparation.prepare import prepare
from tests.support.image_files import (
    batches_of,
    with_settings,
)


def test_metadata_file_has_sizes_counts_settings_and_matching_checksum(config):
    prepare(config, 32)
    path = Path(config.prepared_dir) / "train.beton"
    metadata = read_metadata(path)
    assert metadata.samples_per_class == [4, 4]
    assert tuple(metadata.heights) == tuple(metadata.widths) == (32, 32)
    assert metadata.settings["data.validation_share"] == 0.34
    verify(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its SHA-256"):
        verify(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_share": 0.2}, r"data.validation_share 0.34 \(now 0.2\)"),
        ({"split_seed": 3}, r"data.split_seed 0 \(now 3\)"),
        ({"image_format": "jpeg"}, r"data.image_format 'raw' \(now 'jpeg'\)"),
        ({"source": "parquet"}, r"data.source 'imagefolder' \(now 'parquet'\)"),
    ],
)
def test_files_of_other_settings_raise_error_with_the_difference(config, settings, message):
    prepare(config, 32)
    with pytest.raises(ValueError, match=message):
        prepare(with_settings(config, **settings), 32)


def test_file_of_one_split_is_not_accepted_as_another(config):
    prepare(config, 32)
    folder = Path(config.prepared_dir)
    for suffix in ("", ".json"):
        content = (folder / f"train.beton{suffix}").read_bytes()
        (folder / f"test.beton{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match="contains the train split instead of test"):
        prepare(config, 32)


def test_splits_of_different_sources_raise_error(config):
    prepare(config, 32)
    path = Path(config.prepared_dir) / "val.beton.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "source": {**content["source"], "sha256": "x"}}))
    with pytest.raises(ValueError, match="one image may be in two splits"):
        prepare(config, 32)


def test_missing_file_error_names_the_preparation_script(copied):
    (Path(copied.prepared_dir) / "train.beton").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.beton: no such file; run pipelines/prep"):
        batches_of(copied)


def test_file_with_wrong_size_raises_error_with_both_sizes(copied):
    path = Path(copied.prepared_dir) / "train.beton"
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    size = len(content)
    with pytest.raises(ValueError, match=rf"has {size - 7} bytes, but .*json lists {size}"):
        batches_of(copied)
