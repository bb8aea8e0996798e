"""Images and skipped files in class folders as users have them."""

import os
import unicodedata
from pathlib import Path

import pytest

from pipelines.data.sources.factory import open_source
from pipelines.data.sources.scan import BESIDE, HIDDEN, SERVICE
from tests.support.image_files import encoded, folder_config, photo_tree, pixels
from tests.support.paths import PROJECT

IMAGE = encoded(pixels(7), "JPEG")


@pytest.fixture
def tree(tmp_path) -> Path:
    return photo_tree(tmp_path / "tree", train=3, val=2)


def opened(tree: Path, **settings):
    return open_source(folder_config(tree, **settings), 32)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("train/.ipynb_checkpoints/000-checkpoint.jpg", HIDDEN),
        ("train/cat/.ipynb_checkpoints/000-checkpoint.jpg", HIDDEN),
        ("train/cat/.000.jpg", HIDDEN),
        ("train/cat/._000.jpg", HIDDEN),
        ("val/.DS_Store", HIDDEN),
        ("val/dog/.DS_Store", HIDDEN),
        ("train/.git/objects/a.png", HIDDEN),
        ("train/@eaDir/000.jpg/SYNOPHOTO_THUMB_M.jpg", SERVICE),
        ("train/cat/@eaDir/000.jpg/SYNOPHOTO_THUMB_M.jpg", SERVICE),
        ("val/__MACOSX/cat/000.jpg", SERVICE),
        ("train/cat/Thumbs.db", SERVICE),
        ("train/desktop.ini", SERVICE),
        ("train/lost+found/000.jpg", SERVICE),
        ("train/#recycle/000.jpg", SERVICE),
        ("train/labels.csv", BESIDE),
        ("train/loose.jpg", BESIDE),
        ("train/cat/notes.txt", "suffix .txt"),
        ("train/cat/000.heic", "suffix .heic"),
        ("train/cat/000.jpg.part", "suffix .part"),
        ("train/cat/README", "without a suffix"),
    ],
)
def test_file_that_is_no_image_of_a_class_is_counted_by_reason(tree, path, reason):
    clean = opened(tree)
    (tree / path).parent.mkdir(parents=True, exist_ok=True)
    (tree / path).write_bytes(IMAGE)
    source = opened(tree)
    assert source.class_names == ("cat", "dog", "owl")
    assert source.fingerprint == clean.fingerprint
    assert source.files.seen == clean.files.seen + 1 == 16
    assert source.files.skipped == {reason: 1}


@pytest.mark.parametrize(
    "suffix", [".jfif", ".jpe", ".JPG", ".avif", ".webp", ".pbm", ".pnm", ".TIFF"]
)
def test_image_suffix_is_accepted_in_any_case(tree, suffix):
    (tree / "train" / "cat" / f"new{suffix}").write_bytes(IMAGE)
    source = opened(tree)
    assert len(source.train.labels) == 10
    assert not source.files.skipped


def test_images_behind_links_are_found_and_loops_are_named(tree, tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    (tmp_path / "more" / "deep" / "new.jpg").write_bytes(IMAGE)
    (tree / "train" / "cat" / "more").symlink_to(tmp_path / "more")
    (tree / "train" / "dog").rename(tmp_path / "dog")
    (tree / "train" / "dog").symlink_to(tmp_path / "dog")
    (tree / "val" / "dog" / "up").symlink_to(tree / "val")
    source = opened(tree)
    assert "train/cat/more/deep/new.jpg" in [source.train.name(index) for index in range(10)]
    assert len(source.train.labels) == 10
    [sentence] = source.unreadable["test"]
    assert sentence == f"{tree}/val/dog/up/ is a link to a folder that contains it"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.symlink_to("gone/x.jpg"), "is a broken link to gone/x.jpg"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (os.mkfifo, "is a named pipe, not an image file"),
    ],
)
def test_broken_entries_are_named_and_are_no_images(tree, make, sentence):
    path = tree / "val" / "cat" / "p.jpg"
    make(path)
    source = opened(tree)
    assert source.unreadable == {"train": (), "test": (f"{path} {sentence}",)}
    assert len(source.test.labels) == 6
    assert source.files.seen == 16


def test_unreadable_folder_is_named(tree, monkeypatch):
    folder = tree / "train" / "cat" / "locked"
    folder.mkdir()
    scandir = os.scandir

    def denied(path):  # the tests may run as root, which reads everything
        if str(path).startswith(str(folder)):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert opened(tree).unreadable["train"] == (f"{folder}/ cannot be read: Permission denied",)


def test_image_with_a_name_in_latin_1_is_used(tree):
    path = os.path.join(os.fsencode(tree), b"train/cat/caf\xe9.jpg")  # noqa: PTH118
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(IMAGE)
    source = opened(tree)
    assert len(source.train.labels) == 10
    assert len(source.fingerprint) == len(source.stamps) == 64


def test_class_folder_with_a_name_in_latin_1_is_rejected_by_name(tree):
    for part in (b"train", b"val"):
        os.mkdir(os.path.join(os.fsencode(tree), part, b"caf\xe9"))  # noqa: PTH102, PTH118
    with pytest.raises(ValueError, match=r"has the class folder 'caf\\\\xe9', whose name is not"):
        opened(tree)


def test_class_folders_are_compared_in_one_unicode_form(tree):
    decomposed = unicodedata.normalize("NFD", "café")
    for part, name in (("train", "café"), ("val", decomposed)):
        (tree / part / "owl").rename(tree / part / name)
    source = opened(tree)
    assert source.class_names == ("café", "cat", "dog")
    assert len(source.test.labels) == 6
    (tree / "train" / decomposed).mkdir()
    with pytest.raises(ValueError, match="two class folders named 'café', in different Unicode"):
        opened(tree)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Cat",
            "only train has 'cat'; only val has 'Cat'; only case or spaces differ in 'cat' and",
        ),
        ("cat ", "only val has 'cat '; only case or spaces differ in 'cat' and 'cat ': rename one"),
        ("lion", "only train has 'cat'; only val has 'lion'$"),
    ],
)
def test_different_class_folders_are_shown_with_their_spaces(tree, name, message):
    (tree / "val" / "cat").rename(tree / "val" / name)
    with pytest.raises(ValueError, match=message):
        opened(tree)


def test_flat_validation_folder_is_explained(tree):
    for number, path in enumerate(sorted((tree / "val").rglob("*.jpg"))):
        path.rename(tree / "val" / f"ILSVRC2012_val_{number:08}.JPEG")
    for path in (tree / "val").iterdir():
        if path.is_dir():
            path.rmdir()
    with pytest.raises(ValueError, match=r"val has 6 images but no class folders, as ImageNet's"):
        opened(tree)


@pytest.mark.parametrize("kind", ["link", "copy"])
def test_test_set_that_is_the_training_set_is_rejected(tree, kind):
    for path in sorted((tree / "val").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    if kind == "link":
        (tree / "val").rmdir()
        (tree / "val").symlink_to("train")
    else:
        for path in (tree / "train").rglob("*.jpg"):
            copy = tree / "val" / path.parent.name / f"copy{path.name}"
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    with pytest.raises(
        ValueError, match=r"are the same folder|the test images are training images"
    ):
        opened(tree)


def test_all_empty_classes_and_classes_with_one_image_are_named(tree):
    for name in ("cat", "owl"):
        for path in sorted((tree / "train" / name).iterdir())[1:]:
            path.unlink()
    from pipelines.data.sources.base import split_source

    with pytest.raises(ValueError, match="class 'cat', 'owl' has 1 training images"):
        split_source(opened(tree), folder_config(tree))
    (tree / "train" / "cat" / "000.jpg").unlink()
    for path in (tree / "val" / "dog").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"train/cat, .*val/dog contains no image \(.avif"):
        opened(tree)


def test_accepted_formats_are_documented():
    text = (PROJECT / "docs" / "operating" / "data.md").read_text()
    from pipelines.data.sources.scan import IMAGE_SUFFIXES

    assert not [suffix for suffix in IMAGE_SUFFIXES if f"`{suffix}`" not in text]
