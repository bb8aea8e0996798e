"""What each source gives, and how it refuses what cannot be trained on."""

import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from pipelines.data import DataConfig, UnreadableImageError, decode_rgb
from pipelines.data.preparation.prepare import split_source
from pipelines.data.sources.factory import open_source, read_class_index
from pipelines.data.splits import hold_out
from tests.support.image_files import encoded, folder_config, image_folder, pixels


def write_parquet(path, labels, classes=None):
    images = [encoded(pixels(seed)) for seed in range(len(labels))]
    labels = pyarrow.array(labels, None if labels else pyarrow.int64())
    table = pyarrow.table({"image": pyarrow.array(images, pyarrow.binary()), "label": labels})
    if classes is not None:
        table = table.replace_schema_metadata({"classes": json.dumps(classes)})
    parquet.write_table(table, path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": "mnist"}, "data.source must be one of digits, "),
        (
            {"crop": "random"},
            "data.augment.crop must be one of none, pad4, random_resized, got 'random'",
        ),
        ({"mean": (0.5, 0.5)}, "data.mean must be three numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "data.std must be above 0"),
        ({"validation_share": 0.0}, "chosen on held-out images"),
        ({"max_side": -1}, "data.max_side must be 0 or more"),
        ({"jpeg_quality": 0}, "data.jpeg_quality must be 1 to 100"),
        ({"source": "parquet"}, "data.source_dir must name the folder"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)


def test_held_out_images_are_the_same_share_of_every_class_and_no_others():
    labels = np.repeat([0, 1, 2], [100, 50, 2])
    kept, held = hold_out(labels, 0.1, 7, ("a", "b", "c"))
    assert np.bincount(labels[held]).tolist() == [10, 5, 1]
    assert sorted([*kept, *held]) == list(range(152))
    assert np.array_equal(held, hold_out(labels, 0.1, 7, ("a", "b", "c"))[1])
    assert not np.array_equal(held, hold_out(labels, 0.1, 8, ("a", "b", "c"))[1])


def test_a_class_of_one_image_cannot_be_held_out():
    with pytest.raises(ValueError, match="class 'b' has 1 training images"):
        hold_out(np.array([0, 0, 1]), 0.5, 0, ("a", "b"))


def test_the_digits_are_1797_rgb_images_each_in_one_split():
    config = DataConfig(source="digits", validation_share=0.2)
    parts = split_source(open_source(config, 32), config)
    assert [len(parts[split].labels) for split in ("train", "val", "test")] == [1222, 306, 269]
    used = []
    for images in parts.values():
        assert np.bincount(images.labels).min() > 0.9 * len(images.labels) / 10
        assert images.read(0).pixels.shape == (32, 32, 3)
        used += [images.name(index) for index in range(len(images.labels))]
    assert len(set(used)) == 1797


def test_the_test_digits_stay_the_same_whatever_the_validation_split():
    names = []
    for seed in (0, 1):
        config = DataConfig(source="digits", split_seed=seed)
        test = split_source(open_source(config, 8), config)["test"]
        names.append([test.name(index) for index in range(len(test.labels))])
    assert names[0] == names[1]


def test_an_image_folder_gives_its_val_as_test_and_holds_validation_out_of_train(tmp_path):
    config = folder_config(image_folder(tmp_path / "tree"))
    source = open_source(config, 32)
    parts = split_source(source, config)
    assert source.class_names == ("cat", "dog")
    assert parts["train"].labels.tolist() == [0] * 4 + [1] * 4
    assert parts["val"].labels.tolist() == [0] * 2 + [1] * 2
    assert parts["test"].name(3) == "val/dog/001.png"
    assert np.array_equal(parts["test"].read(3).pixels, pixels(1501))


def test_the_order_of_an_image_folder_does_not_depend_on_the_file_system(tmp_path):
    source = open_source(folder_config(image_folder(tmp_path / "tree")), 32)
    names = [source.train.name(index) for index in range(12)]
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no root", "no such folder"),
        ("no val", "val does not exist"),
        ("no classes", "is empty: it must hold one folder of images per class"),
        ("empty class", "holds no image"),
        ("other classes", "only one has bird"),
        ("one class", "needs 2 or more classes to tell apart, got 1: cat"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_says_why(tmp_path, damage, message):
    root = tmp_path / "tree"
    if damage == "one class":
        image_folder(root, classes=("cat",))
    elif damage != "no root":
        image_folder(root)
    if damage == "no val":
        (root / "val").rename(root / "test")
    elif damage == "no classes":
        (root / "train").rename(root / "elsewhere")
        (root / "train").mkdir()
    elif damage == "empty class":
        for path in (root / "train" / "dog").iterdir():
            path.rename(path.with_suffix(".txt"))
    elif damage == "other classes":
        (root / "val" / "bird").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_source(folder_config(root), 32)


def test_a_parquet_source_gives_its_images_labels_and_class_names(tmp_path):
    write_parquet(tmp_path / "a-train.parquet", [0, 1, 1, 0], ["cat", "dog"])
    write_parquet(tmp_path / "a-test.parquet", [1])
    source = open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)
    assert source.class_names == ("cat", "dog")
    assert source.train.labels.tolist() == [0, 1, 1, 0]
    assert np.array_equal(source.train.read(2).pixels, pixels(2))


def test_a_parquet_source_without_names_numbers_its_classes(tmp_path):
    write_parquet(tmp_path / "train-train.parquet", [0, 1, 2])
    write_parquet(tmp_path / "train-test.parquet", [1])
    assert open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32).class_names == (
        "0",
        "1",
        "2",
    )


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 2], [0], "a-train.parquet row 2 has label 2, but labels must be 0 to 1"),
        ([0, -1], [0], "a-train.parquet row 1 has label -1"),
        ([0, 1], [0, 7], "a-test.parquet row 1 has label 7"),
        ([0.5, 1.0], [0], "labels must be whole numbers"),
        ([0, None], [0], "no image or label may be null"),
        ([], [0], "holds no images"),
    ],
)
def test_a_label_that_is_no_class_is_refused_with_its_row(tmp_path, train, test, message):
    write_parquet(tmp_path / "a-train.parquet", train, ["cat", "dog"])
    write_parquet(tmp_path / "a-test.parquet", test)
    with pytest.raises(ValueError, match=message):
        open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)


def test_two_files_for_one_part_are_refused_by_name(tmp_path):
    for name in ("a-train", "b-train", "a-test"):
        write_parquet(tmp_path / f"{name}.parquet", [0, 1])
    with pytest.raises(FileNotFoundError, match=r"found a-train.parquet, b-train.parquet"):
        open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)


def test_a_missing_column_is_named(tmp_path):
    for part in ("train", "test"):
        parquet.write_table(
            pyarrow.table({"img": [b""], "label": [0]}), tmp_path / f"a-{part}.parquet"
        )
    with pytest.raises(ValueError, match=r"no column 'image'; its columns are img, label"):
        open_source(DataConfig(source="parquet", source_dir=str(tmp_path)), 32)


def fake_cifar(root, monkeypatch):
    """CIFAR-10's own files, with three images each, where torchvision looks for them."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir()
    lists = {"train_list": [], "test_list": []}
    for part, name, seed in (("train_list", "data_batch_1", 0), ("test_list", "test_batch", 9)):
        rows = np.stack([pixels(seed + k).transpose(2, 0, 1).reshape(-1) for k in range(3)])
        content = pickle.dumps({"data": rows, "labels": [0, 1, 1]})
        (folder / name).write_bytes(content)
        lists[part].append([name, hashlib.md5(content).hexdigest()])
    content = pickle.dumps({"label_names": ["cat", "dog"]})
    (folder / "batches.meta").write_bytes(content)
    meta = {**CIFAR10.meta, "md5": hashlib.md5(content).hexdigest()}
    for name, value in {**lists, "meta": meta}.items():
        monkeypatch.setattr(CIFAR10, name, value)
    with tarfile.open(root / CIFAR10.filename, "w:gz") as archive:
        archive.add(folder, CIFAR10.base_folder)
    monkeypatch.setattr(
        CIFAR10, "tgz_md5", hashlib.md5((root / CIFAR10.filename).read_bytes()).hexdigest()
    )


def test_cifar10_is_read_from_a_local_root(tmp_path, monkeypatch):
    fake_cifar(tmp_path, monkeypatch)
    source = open_source(DataConfig(source="cifar10", source_dir=str(tmp_path)), 32)
    assert source.class_names == ("cat", "dog")
    assert source.test.labels.tolist() == [0, 1, 1]
    assert np.array_equal(source.train.read(1).pixels, pixels(1))


def test_cifar10_that_cannot_be_downloaded_says_what_to_put_where(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .* put cifar-10-python"):
        open_source(DataConfig(source="cifar10", source_dir=str(tmp_path / "cifar")), 32)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_an_image_of_any_kind_becomes_rgb(mode):
    grey = Image.fromarray(np.full((5, 7), 200, np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 7), 200 * 256, np.uint16))
    elif mode == "P":
        image = grey.convert("RGB").quantize()
    else:
        image = grey.convert("RGB").convert(mode)
    decoded = decode_rgb(encoded(image, "TIFF"), "x")
    assert decoded.shape == (5, 7, 3)
    assert decoded.dtype == np.uint8
    expected = 255 if mode == "1" else 200
    assert np.abs(np.median(decoded) - expected) <= 1


def test_a_palette_with_transparent_entries_becomes_rgb():
    image = Image.fromarray(pixels(0)).convert("P")
    image.info["transparency"] = bytes(range(256))
    assert decode_rgb(encoded(image, "PNG"), "x").shape == (32, 32, 3)


def test_a_photograph_taken_sideways_stands_upright():
    image = Image.fromarray(pixels(0, 4, 8))
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    assert np.array_equal(decode_rgb(file.getvalue(), "x"), np.rot90(pixels(0, 4, 8), -1))


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "zeros"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_what_is_no_whole_image_is_refused_by_name(kind, form):
    whole = encoded(pixels(0, 64, 64), form)
    content = {
        "truncated": whole[: len(whole) // 2],
        "text": b"not an image",
        "empty": b"",
        "zeros": bytes(len(whole)),
    }[kind]
    with pytest.raises(UnreadableImageError, match=r"^cat/1.jpg is not a readable image"):
        decode_rgb(content, "cat/1.jpg")


def test_real_cifar10_images_are_split_evenly_over_its_classes(shared_data):
    config = DataConfig(source="parquet", source_dir=str(shared_data))
    source = open_source(config, 32)
    parts = split_source(source, config)
    counts = {split: np.bincount(images.labels).tolist() for split, images in parts.items()}
    assert counts == {"train": [4500] * 10, "val": [500] * 10, "test": [1000] * 10}
    assert source.class_names[3] == "cat"
    assert parts["val"].read(0).pixels.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.txt", "bird\ncat\n\ndog\nfish\n"),
        ("index.json", '["bird", "cat", "dog", "fish"]'),
        ("index.json", '{"0": ["bird", "x"], "1": ["cat"], "3": ["fish"], "2": ["dog"]}'),
    ],
)
def test_a_class_index_gives_folders_their_labels_among_all_classes(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    config = folder_config(image_folder(tmp_path / "tree"), class_index=str(tmp_path / name))
    source = open_source(config, 32)
    assert source.class_names == ("bird", "cat", "dog", "fish")
    assert source.test.labels.tolist() == [1, 1, 2, 2]
    parts = split_source(source, config)
    assert np.bincount(parts["val"].labels, minlength=4).tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("index.txt", "cat\nbird\n", r"1 class folders that are not in .*index.txt: dog"),
        ("index.txt", "cat\ndog\ncat\n", r"every name once, but has cat twice"),
        ("index.txt", "", r"every name once, but has none"),
        ("index.json", '{"cat": 0}', r"index.json is no list of names: KeyError"),
        ("index.json", "[1, 2]", r"must be a list of names in order of label"),
        ("index.json", "cat", r"is no list of names: JSONDecodeError"),
    ],
)
def test_a_class_index_that_does_not_fit_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    config = folder_config(image_folder(tmp_path / "tree"), class_index=str(tmp_path / name))
    with pytest.raises(ValueError, match=message):
        open_source(config, 32)


def test_a_class_index_that_is_not_there_is_named(tmp_path):
    config = folder_config(image_folder(tmp_path / "tree"), class_index="no.txt")
    with pytest.raises(FileNotFoundError, match=r"data.class_index is no.txt: no such file"):
        open_source(config, 32)


def test_imagenets_class_index_has_the_thousand_names_in_their_order():
    names = read_class_index("configs/imagenet_classes.txt")
    assert len(names) == 1000
    assert list(names) == sorted(names)
    assert names[:2] == ("n01440764", "n01443537")
