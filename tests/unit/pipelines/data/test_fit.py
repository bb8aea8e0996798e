"""Settings that do not fit the images, found before and after preparation."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipelines.data.config import DataConfig
from pipelines.data.fit import check_fit
from pipelines.data.format.metadata import read_info
from pipelines.data.preflight import check_images
from pipelines.data.preparation.prepare import prepare
from ranet.config import ModelConfig
from tests.support.image_files import (
    batches_of,
    folder_config,
    photo_tree,
    read_epoch,
    with_settings,
)

MODEL = ModelConfig(image_size=32, num_classes=3)
CLASSES = "model.num_classes must be 3, the number of classes of data.source imagefolder, got 4"
BATCH = "train.batch_size is 500, but there are only 24 training images; use a smaller batch"
PAD = (
    "data.augment.crop: pad4 needs images of 32x32 pixels, but the training images have "
    "[height, width] [48, 64] to [48, 64]; use data.augment.crop: random_resized"
)
MEMORY = (
    "data.loader: memory needs square images of one size, but the training images have "
    "[height, width] [48, 64] to [48, 64]; use data.loader: ffcv"
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    tree = photo_tree(tmp_path_factory.mktemp("photos") / "tree")
    return folder_config(tree, crop="random_resized")


@pytest.mark.parametrize("is_prepared", [False, True])
@pytest.mark.parametrize(
    ("settings", "model", "batch_size", "problems"),
    [
        ({}, MODEL, 8, []),
        ({}, replace(MODEL, num_classes=4), 8, [CLASSES]),
        ({}, MODEL, 500, [BATCH]),
        ({"crop": "pad4"}, MODEL, 8, [PAD]),
        ({"loader": "memory"}, MODEL, 8, [MEMORY]),
        ({"crop": "pad4", "loader": "memory"}, replace(MODEL, num_classes=4), 500,
         [CLASSES, BATCH, PAD, MEMORY]),
    ],
)  # fmt: skip
def test_all_settings_that_do_not_fit_are_named(
    config, tmp_path, is_prepared, settings, model, batch_size, problems
):
    config = with_settings(config, prepared_dir=str(tmp_path / "prepared"), **settings)
    if is_prepared:
        prepare(config, 32)
    report = check_images(config, model, batch_size, is_here=True)
    assert [finding.text for finding in report.findings if finding.is_missing] == problems
    check = partial(check_fit, config, model, batch_size)
    if not problems:
        prepare(config, 32, check=check)
        return
    with pytest.raises(ValueError, match=r"needs|must be|there are only") as caught:
        prepare(config, 32, check=check)
    assert str(caught.value) == "; ".join(problems)
    # Nothing was encoded.
    assert is_prepared or not list((tmp_path / "prepared").glob("*.beton*"))


def test_source_with_one_image_in_a_class_or_bad_files_is_reported_by_name(tmp_path):
    tree = photo_tree(tmp_path / "tree")
    config = folder_config(tree, crop="random_resized")
    for name in ("train/cat/000.jpg", "train/owl/003.jpg", "val/dog/001.jpg"):
        (tree / name).write_text("text")
    report = check_images(config, MODEL, 8, is_here=True)
    found = [finding.text for finding in report.findings if finding.is_missing]
    assert len(found) == 3
    for name in ("train/cat/000.jpg", "train/owl/003.jpg", "val/dog/001.jpg"):
        assert any(f"{tree}/{name} is not a readable image" in sentence for sentence in found)
    for path in sorted((tree / "train" / "cat").iterdir())[1:]:
        path.unlink()
    report = check_images(config, MODEL, 8, is_here=True)
    [sentence] = [finding.text for finding in report.findings if finding.is_missing]
    assert sentence.startswith("class 'cat' has 1 training images")
    assert not Path(config.prepared_dir).exists()


def test_files_of_an_unprepared_source_are_counted(tmp_path):
    tree = photo_tree(tmp_path / "tree")
    (tree / "train" / "cat" / "notes.txt").write_text("text")
    report = check_images(folder_config(tree, crop="none"), MODEL, 8, is_here=True)
    lines = {finding.name: finding.text for finding in report.findings}
    assert lines["files"] == "49 seen, 48 images, 1 skipped (1 suffix .txt)"
    assert lines["images"].endswith("24 train, 12 val, 12 test expected")


def test_changed_source_of_prepared_images_is_reported(tmp_path):
    tree = photo_tree(tmp_path / "tree")
    config = folder_config(tree, crop="none")
    prepare(config, 32)
    (tree / "val" / "cat" / "000.jpg").unlink()
    report = check_images(config, MODEL, 8, is_here=True)
    [sentence] = [finding.text for finding in report.findings if finding.is_missing]
    assert "11 test images instead of 12" in sentence


@pytest.mark.parametrize(
    ("source", "settings", "num_classes", "batch_size", "problems"),
    [
        ("digits", {}, 10, 8, []),
        ("digits", {}, 3, 2000, ["model.num_classes must be 10", "train.batch_size is 2000"]),
        ("cifar10", {}, 10, 8, []),
        ("cifar100", {}, 10, 8, ["model.num_classes must be 100"]),
        ("cifar10", {"max_side": 16}, 10, 8, ["data.augment.crop: pad4 needs images of 32x32"]),
    ],
)
def test_settings_for_a_known_source_are_checked_without_its_files(
    tmp_path, source, settings, num_classes, batch_size, problems
):
    folder = str(tmp_path / "prepared")
    config = DataConfig(source=source, prepared_dir=folder, source_dir=str(tmp_path), **settings)
    model = replace(MODEL, num_classes=num_classes)
    report = check_images(config, model, batch_size, is_here=True)
    found = [finding.text for finding in report.findings if finding.is_missing]
    assert len(found) == len(problems)
    for sentence, start in zip(found, problems, strict=True):
        assert sentence.startswith(start)
    assert not list(tmp_path.iterdir())


def test_prepared_files_are_read_from_another_folder(tmp_path, monkeypatch):
    tree = photo_tree(tmp_path / "tree")
    monkeypatch.chdir(tmp_path)
    config = folder_config(tree, crop="random_resized", source_dir="tree")
    info = prepare(config, 32)
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path / "worker")  # as Ray's workers
    assert read_info(config, 32) == info
    assert len(read_epoch(batches_of(config, "test"))[1]) == 12
