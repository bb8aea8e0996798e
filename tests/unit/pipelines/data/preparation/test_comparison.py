"""Prepared files and their source: changes, copies, duplicates, and the summary."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.data.config import DataConfig
from pipelines.data.format.metadata import read_info
from pipelines.data.preparation.prepare import prepare
from pipelines.data.sources.images import UnreadableImageError
from pipelines.data.summary import describe, summary_of
from tests.support.image_files import (
    encoded,
    folder_config,
    one_after_the_other,
    photo_tree,
    pixels,
    with_settings,
)


@pytest.fixture
def tree(tmp_path) -> Path:
    return photo_tree(tmp_path / "tree", train=4, val=2)


def settings_for(tree: Path, **settings) -> DataConfig:
    return folder_config(tree, **{"crop": "random_resized", **settings})


def add(tree):
    (tree / "train" / "cat" / "new.jpg").write_bytes(encoded(pixels(77), "JPEG"))


def remove(tree):
    (tree / "val" / "cat" / "000.jpg").unlink()


def replace(tree):
    (tree / "train" / "cat" / "000.jpg").write_bytes(encoded(pixels(77, 48, 64), "JPEG"))


def replace_with_equal_size(tree):
    path = tree / "train" / "cat" / "000.jpg"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


def rename(tree):
    path = tree / "train" / "cat" / "000.jpg"
    path.rename(path.with_name("zzz.jpg"))


def add_class(tree):
    for part in ("train", "val"):
        shutil.copytree(tree / part / "cat", tree / part / "lion")


def move_to_other_class(tree):
    path = tree / "train" / "cat" / "000.jpg"
    path.rename(tree / "train" / "dog" / "cat000.jpg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add, r"\(13 training images instead of 12\)"),
        (remove, r"\(5 test images instead of 6\)"),
        (replace, r"\(files were replaced or renamed\)"),
        (replace_with_equal_size, r"\(files were replaced or renamed\)"),
        (rename, r"\(files were replaced or renamed\)"),
        (add_class, r"\(16 training images instead of 12, 8 test images .*, new classes 'lion'\)"),
        (move_to_other_class, r"\(files were replaced or renamed\)"),
    ],
)
def test_changed_source_is_rejected_with_the_change_and_helpful_remedies(tree, change, message):
    config = settings_for(tree)
    before = prepare(config, 32)
    change(tree)
    with pytest.raises(ValueError, match=rf"was prepared from other images .*{message}; set data"):
        prepare(config, 32)
    # The remedies that the message names:
    assert prepare(with_settings(config, source_dir=""), 32) == before
    prepare(with_settings(config, prepared_dir=str(tree.with_name("other"))), 32)
    for path in Path(config.prepared_dir).glob("*.beton*"):
        path.unlink()
    prepare(config, 32)


@pytest.mark.parametrize("kind", ["copy", "move", "touch"])
def test_same_images_elsewhere_or_with_other_times_are_accepted(tree, kind):
    config = settings_for(tree)
    before = prepare(config, 32)
    elsewhere = tree.with_name("elsewhere")
    if kind == "touch":
        for path in tree.rglob("*.jpg"):
            os.utime(path, ns=(1, 1))
        elsewhere = tree
    elif kind == "copy":
        shutil.copytree(tree, elsewhere, copy_function=shutil.copyfile)
    else:
        tree.rename(elsewhere)
    assert prepare(with_settings(config, source_dir=str(elsewhere)), 32) == before


def test_mistyped_source_is_named_with_the_remedies_and_a_deleted_one_is_not_needed(tree, caplog):
    config = settings_for(tree)
    before = prepare(config, 32)
    with pytest.raises(FileNotFoundError, match=r"tre: no such folder; correct the path, or leave"):
        prepare(with_settings(config, source_dir=str(tree)[:-1]), 32)
    shutil.rmtree(tree)
    assert prepare(config, 32) == before
    assert "no longer exists" in caplog.text


def test_class_index_is_compared_by_its_names(tree, tmp_path):
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("cat\ndog\nowl\n")
    second.write_text("owl\ncat\ndog\n")
    config = settings_for(tree, class_index=str(first))
    before = prepare(config, 32)
    first.rename(tmp_path / "moved.txt")
    moved = with_settings(config, class_index=str(tmp_path / "moved.txt"))
    assert prepare(moved, 32) == before
    changed = with_settings(config, class_index=str(second))
    with pytest.raises(ValueError, match=r"was prepared from .*\(other order of the classes\)"):
        prepare(changed, 32)
    with pytest.raises(ValueError, match=r"second.txt has other names, or another order"):
        prepare(with_settings(changed, source_dir=""), 32)


@pytest.mark.parametrize("map_function", [None, one_after_the_other])
def test_all_unreadable_images_are_named_at_once_and_can_be_skipped(tree, map_function):
    bad = {
        "train/cat/a.jpg": lambda path: path.write_text("text"),
        "train/dog/b.jpg": lambda path: path.symlink_to("gone/x.jpg"),
        "val/dog/c.jpg": os.mkfifo,
        "val/owl/d.jpg": lambda path: path.write_bytes(encoded(pixels(0, 40, 50))),
    }
    for name, make in bad.items():
        make(tree / name)
    config = settings_for(tree, max_pixels=48 * 64 - 1)
    with pytest.raises(
        UnreadableImageError, match=r"b.jpg is a broken link .*; .*c.jpg is a named"
    ):
        prepare(config, 32, parallel_map=map_function)
    (tree / "train/dog/b.jpg").unlink()
    (tree / "val/dog/c.jpg").unlink()
    config = with_settings(config, max_pixels=48 * 64)
    (tree / "val/owl/d.jpg").write_bytes(encoded(pixels(0, 49, 64)))
    message = r"a.jpg is not a readable .*; .*d.jpg has 64 x 49 .*these 2 files"
    with pytest.raises(UnreadableImageError, match=message):
        prepare(config, 32, parallel_map=map_function)
    os.mkfifo(tree / "val/dog/c.jpg")
    info = prepare(config, 32, parallel_map=map_function, skip_unreadable=True)
    assert len(info.skipped["train"]) + len(info.skipped["val"]) == 1
    assert len(info.skipped["test"]) == 2
    assert sum(info.num_samples.values()) == 18
    text = describe(info)
    for name in ("a.jpg", "c.jpg", "d.jpg"):
        assert name in text


@pytest.mark.parametrize(("part", "name"), [("train", "train"), ("val", "test")])
def test_skipped_images_may_not_leave_a_class_empty(tree, part, name):
    for path in (tree / part / "owl").iterdir():
        path.write_text("text")
    config = settings_for(tree)
    with pytest.raises(ValueError, match=rf"^{name}: all images of class 'owl' are unreadable"):
        prepare(config, 32, skip_unreadable=True)
    assert not list(Path(config.prepared_dir).glob("*.beton*"))


def test_equal_images_in_two_splits_are_counted(tree, caplog):
    for number in range(2):
        image = (tree / "train" / "cat" / f"00{number}.jpg").read_bytes()
        (tree / "val" / "cat" / f"copy{number}.jpg").write_bytes(image)
    info = prepare(settings_for(tree), 32)
    pairs = {"train and test", "val and test"}
    assert set(info.duplicates) <= pairs
    assert sum(info.duplicates.values()) == 2
    assert "such as val/cat/copy" in caplog.text
    [line] = [line for line in describe(info).splitlines() if "equal files" in line]
    assert " and test" in line


def test_missing_split_is_compared_with_present_ones(tree):
    image = (tree / "train" / "cat" / "001.jpg").read_bytes()
    (tree / "val" / "cat" / "copy.jpg").write_bytes(image)
    config = settings_for(tree)
    before = prepare(config, 32)
    for name in ("test.beton", "test.beton.json"):
        (Path(config.prepared_dir) / name).unlink()
    assert prepare(config, 32) == before
    assert sum(before.duplicates.values()) == 1


def test_summary_has_files_classes_and_statistics(tree):
    (tree / "train" / "cat" / ".hidden.jpg").write_bytes(b"x")
    (tree / "train" / "labels.csv").write_text("x")
    (tree / "val" / "owl" / "000.heic").write_bytes(b"x")
    (tree / "val" / "owl" / "001.jpg").unlink()
    config = settings_for(tree)
    info = prepare(config, 32)
    text = describe(info)
    for line in (
        "files  20 seen, 17 images, 3 skipped (1 beside the class folders, 1 hidden: a name on the "
        "path begins with a dot, 1 suffix .heic)",
        "test           5 images, 1 to 2 per class, heights 48, widths 64",
        "equal files in two splits: none",
    ):
        assert line in text
    stored = json.loads((Path(config.prepared_dir) / "test.beton.json").read_text())
    assert stored["source"]["files_seen"] == 20
    summary = summary_of(info)
    assert summary["images_per_class"]["test"] == {"min": 1, "max": 2}
    json.dumps(summary)
    assert read_info(with_settings(config, source_dir=""), 32) == info


def test_mean_and_std_are_those_of_the_training_images(tree):
    config = settings_for(tree, validation_share=0.25)
    info = prepare(config, 32)
    from pipelines.data.format.beton import open_beton

    beton = open_beton(Path(config.prepared_dir) / "train.beton")
    images = [beton.data[start : start + length] for start, length in beton.table[:, :2]]
    values = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    assert info.mean == pytest.approx(values.mean(axis=0), abs=1e-3)
    assert info.std == pytest.approx(values.std(axis=0), abs=1e-3)


def test_images_of_one_colour_have_a_std_above_zero(tree):
    for number, path in enumerate(sorted(tree.rglob("*.jpg"))):
        path.write_bytes(encoded(np.full((48, 64 + number, 3), 128, np.uint8), "PNG"))
    info = prepare(settings_for(tree), 32)
    assert min(info.std) > 0


def test_repaired_image_is_read_again_after_a_failed_preparation(tree):
    bad = tree / "train" / "cat" / "000.jpg"
    content = bad.read_bytes()
    bad.write_bytes(bytes(len(content)))
    config = settings_for(tree)
    with pytest.raises(UnreadableImageError):
        prepare(config, 32, parallel_map=one_after_the_other)
    bad.write_bytes(content)
    info = prepare(config, 32, parallel_map=one_after_the_other)
    assert not any(info.skipped.values())
    assert not list(Path(config.prepared_dir).glob("shards-*"))


@pytest.mark.parametrize("name", ["mean", "std"])
def test_configured_statistics_of_other_images_are_reported(tree, caplog, name):
    config = settings_for(tree)
    ours = getattr(prepare(config, 32), name)
    prepare(with_settings(config, **{name: tuple(value + 0.05 for value in ours)}), 32)
    assert not caplog.records
    prepare(with_settings(config, **{name: tuple(value + 0.2 for value in ours)}), 32)
    assert f"but {list(ours)} over the training images; set it to null" in caplog.text
