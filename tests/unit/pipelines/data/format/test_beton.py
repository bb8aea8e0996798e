"""Writer and reader of prepared files."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.data.format.beton import open_beton, write_beton
from pipelines.data.preparation.prepare import prepare
from pipelines.data.sources.base import ArrayImages
from pipelines.data.sources.factory import open_source
from tests.support.image_files import (
    batches_of,
    read_epoch,
)


def test_missing_image_raises_error_even_when_unreadable_images_are_skipped(config, tmp_path):
    source = open_source(config, 32)
    (Path(config.source_dir) / "val" / "cat" / "000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"000.png"):
        write_beton(tmp_path / "x.beton", source.test, config, skip_unreadable=True)


def test_samples_on_many_pages_are_all_read_back(tmp_path, config):
    shape = (7, 1000, 1000, 3)  # two to a page of 8 MiB
    values = np.arange(7, dtype=np.uint8)[:, None, None, None]
    images = ArrayImages("x", np.broadcast_to(values, shape), np.arange(7))
    write_beton(tmp_path / "x.beton", images, config)
    beton = open_beton(tmp_path / "x.beton")
    for sample, (begin, length) in enumerate(beton.table[:, :2]):
        assert (beton.data[begin : begin + length] == sample).all()
        assert begin // 2**23 == (begin + length - 1) // 2**23


def test_ffcv_loader_reads_prepared_file(config):
    prepare(config, 32)  # also loads FFCV, as its import must not come first
    from ffcv.loader import Loader

    path = Path(config.prepared_dir) / "test.beton"
    loader = Loader(str(path), batch_size=3, num_workers=1, os_cache=False, drop_last=False)
    ours = read_epoch(batches_of(config, "test"))
    theirs = [(images.clone(), labels.clone()) for images, labels in loader]
    assert np.array_equal(
        np.concatenate([images for images, _ in theirs]), ours[0].permute(0, 2, 3, 1)
    )
    assert np.concatenate([labels for _, labels in theirs])[:, 0].tolist() == ours[1].tolist()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "is truncated: .* bytes, but its 6 images need"),
        (lambda content: content[:3000], "is truncated"),
        (lambda content: content[:10], "is not an FFCV file: 10 bytes are too few"),
        (lambda content: bytes(len(content)), "is unfinished"),
        (lambda content: content[:16] + bytes(8) + content[24:], "is unfinished"),
        (lambda content: b"PK" + content[2:], "is not an FFCV file of version 2"),
        (lambda content: content[:2100] + bytes(100) + content[2200:], "is damaged: its tables"),
        (lambda content: content + bytes(24), "is damaged: its tables"),
    ],
)
def test_incomplete_file_raises_error_with_reason(copied, damage, message):
    path = Path(copied.prepared_dir) / "test.beton"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        open_beton(path)


def test_file_with_other_fields_raises_error_with_their_names(copied):
    path = Path(copied.prepared_dir) / "test.beton"
    content = path.read_bytes()
    begin = content.index(b"\x02image\0")
    path.write_bytes(content[:begin] + b"\x00covar" + content[begin + 6 :])
    message = r"fields image \(RGBImageField\), label .* has covar \(FloatField\), label"
    with pytest.raises(ValueError, match=message):
        open_beton(path)
