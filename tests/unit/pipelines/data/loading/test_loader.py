"""Batches of a prepared split: pictures, order, errors, and what is left when reading ends."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from pipelines.data import prepare
from pipelines.data.format.beton import Beton, open_beton
from pipelines.data.loading.streaming import StreamingBatches
from tests.support.image_files import (
    batches_of,
    encoded,
    folder_config,
    image_folder,
    pixels,
    read_epoch,
    with_settings,
)


def test_ffcv_is_imported_without_numbas_dictionaries():
    import numba.typed
    from ffcv.fields.rgb_image import IMAGE_MODES

    assert type(IMAGE_MODES) is dict
    assert numba.typed.Dict is not dict


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """20 training images of 32x32 pixels, 10 validation images, 6 test images."""
    root = image_folder(tmp_path_factory.mktemp("small") / "tree", train=15, val=3)
    config = folder_config(root)
    prepare(config, 32)
    return config


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Images of 80x64 pixels, stored as JPEG."""
    root = image_folder(tmp_path_factory.mktemp("large") / "tree", train=4)
    for path in root.rglob("*.png"):
        path.write_bytes(encoded(pixels(int(path.stem), 80, 64)))
    config = folder_config(root, image_format="jpeg", jpeg_quality=95, crop="random_resized")
    prepare(config, 32)
    return config


def decoding_threads() -> set[str]:
    return {
        thread.name for thread in threading.enumerate() if thread is not threading.main_thread()
    }


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = decoding_threads()
    yield
    assert decoding_threads() == before


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_batches_are_uint8_channels_last_with_int64_labels(config, loader):
    batches = batches_of(with_settings(config, loader=loader))
    with batches.epoch(0) as iterator:
        images, labels = next(iterator)
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (4,)
    assert labels.dtype == torch.int64
    assert len(batches) == 5
    assert batches.num_samples == 20


@pytest.mark.parametrize("crop", ["none", "pad4"])
@pytest.mark.parametrize("flip", [False, True])
def test_both_loaders_give_the_same_training_pictures(config, crop, flip):
    settings = with_settings(config, crop=crop, flip=flip)
    ffcv_images, ffcv_labels = read_epoch(batches_of(settings), 3)
    memory_images, memory_labels = read_epoch(
        batches_of(with_settings(settings, loader="memory")), 3
    )
    assert torch.equal(ffcv_images, memory_images)
    assert torch.equal(ffcv_labels, memory_labels)


def test_a_training_picture_is_the_padded_window_that_the_plan_says(config):
    batches = batches_of(config)
    assert isinstance(batches, StreamingBatches)
    images, _ = read_epoch(batches, 1)
    stored = read_epoch(batches_of(with_settings(config, crop="none", flip=False)), 1)[0]
    boxes = batches.planner.epoch(1).boxes
    assert len({tuple(box) for box in boxes.tolist()}) > 10
    for image, original, (top, left, _, _, mirrored) in zip(images, stored, boxes, strict=True):
        padded = torch.nn.functional.pad(original, (4, 4, 4, 4))
        window = padded[:, top + 4 : top + 36, left + 4 : left + 36]
        assert torch.equal(image, window.flip(2) if mirrored else window)


def test_both_loaders_resize_nearly_alike(tmp_path):
    config = folder_config(image_folder(tmp_path / "tree", size=48), crop="random_resized")
    prepare(config, 32)
    ours, _ = read_epoch(batches_of(config))
    memory, _ = read_epoch(batches_of(with_settings(config, loader="memory")))
    assert (ours.float() - memory.float()).abs().mean() < 3


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_evaluation_resizes_and_crops_as_torchvision_does(large, loader):
    images, _ = read_epoch(batches_of(with_settings(large, loader=loader), "test", image_size=28))
    transform = v2.Compose([v2.Resize(32), v2.CenterCrop(28)])
    for image, seed in zip(images, (0, 1, 0, 1), strict=True):
        expected = transform(torch.tensor(pixels(seed, 80, 64)).permute(2, 0, 1))
        assert (image.float() - expected.float()).abs().mean() < 2


def test_a_jpeg_is_the_image_it_was_made_from(large):
    stored = with_settings(large, crop="none", flip=False)
    beton = open_beton(Path(large.prepared_dir) / "test.beton")
    assert beton.sizes.tolist() == [[80, 64]] * 4
    assert (beton.table[:, 4] == 1).all()
    assert beton.table[:, 1].max() < 80 * 64 * 3 / 4
    assert read_epoch(batches_of(stored, "test"))[0].float().std() > 20


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_the_order_of_blocks_gives_the_same_pictures(config, loader):
    orders = [
        read_epoch(batches_of(with_settings(config, loader=loader, shuffle=order)), 1)
        for order in ("full", "blocks")
    ]
    one, other = (
        sorted((label, images.numpy().tobytes()) for images, label in zip(*read, strict=True))
        for read in orders
    )
    assert one == other
    assert not torch.equal(orders[0][0], orders[1][0])


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_two_workers_together_read_what_one_reads(config, loader):
    settings = with_settings(config, loader=loader)
    alone, labels = read_epoch(batches_of(settings), 2)
    halves = [read_epoch(batches_of(settings, rank=rank, num_workers=2), 2) for rank in (0, 1)]
    together = torch.stack([half[0].reshape(5, 2, 3, 32, 32) for half in halves], 1)
    assert torch.equal(together.reshape(alone.shape), alone)
    together = torch.stack([half[1].reshape(5, 2) for half in halves], 1)
    assert torch.equal(together.reshape(-1), labels)


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_workers_that_do_not_divide_the_batch_read_it_all(config, loader):
    settings = with_settings(config, loader=loader)
    alone, labels = read_epoch(batches_of(settings, batch_size=5), 2)
    parts = [batches_of(settings, batch_size=5, rank=rank, num_workers=3) for rank in range(3)]
    given = []
    for part in parts:
        with part.epoch(2) as iterator:
            given.append([(images.clone(), labels) for images, labels in iterator])
    assert [len(batches) for batches in given] == [4, 4, 4]
    assert [len(batches[0][1]) for batches in given] == [2, 2, 1]
    together = [batches[number] for number in range(4) for batches in given]
    assert torch.equal(torch.cat([images for images, _ in together]), alone)
    assert torch.equal(torch.cat([labels for _, labels in together]), labels)


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
@pytest.mark.parametrize("first_step", [0, 1, 3, 5])
def test_an_epoch_opened_at_a_step_gives_the_rest_of_it(config, loader, first_step):
    batches = batches_of(with_settings(config, loader=loader))
    images, labels = read_epoch(batches, 2)
    with batches.epoch(2, first_step) as iterator:
        rest = [(images.clone(), labels) for images, labels in iterator]
    assert len(rest) == 5 - first_step
    for number, (some, their_labels) in enumerate(rest, start=first_step):
        rows = slice(4 * number, 4 * number + 4)
        assert torch.equal(some, images[rows])
        assert torch.equal(their_labels, labels[rows])


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
@pytest.mark.parametrize("crop", ["none", "random_resized"])
def test_images_of_each_epoch_have_its_size_and_show_the_same(config, loader, crop):
    settings = with_settings(config, loader=loader, crop=crop)
    large = batches_of(settings, epoch_sizes=[32, 32, 32])
    mixed = batches_of(settings, epoch_sizes=[16, 48, 16])
    for epoch, size in enumerate([16, 48, 16]):
        images, labels = read_epoch(mixed, epoch)
        same, expected = read_epoch(large, epoch)
        assert images.shape == (20, 3, size, size)
        assert torch.equal(labels, expected)
        if crop == "random_resized":
            at_hand = torch.nn.functional.interpolate(
                same.float(), size=(size, size), mode="bilinear", antialias=True
            )
            assert (at_hand - images).abs().mean() < 6
    val, _ = read_epoch(batches_of(settings, "val", epoch_sizes=[16, 48, 16]))
    assert val.shape[2:] == (32, 32)


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
@pytest.mark.parametrize("num_workers", [1, 2, 4, 7])
def test_validation_gives_each_image_once_however_many_workers(config, loader, num_workers):
    settings = with_settings(config, loader=loader)
    whole, _ = read_epoch(batches_of(settings, "val"))
    images = []
    for rank in range(num_workers):
        batches = batches_of(settings, "val", rank=rank, num_workers=num_workers)
        with batches.epoch(9) as iterator:
            given = [image.clone() for image, _ in iterator]
        assert len(given) == len(batches)
        images += given
    assert torch.equal(torch.cat(images), whole)
    assert len(whole) == 10


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_an_epoch_is_the_same_whatever_was_read_before(config, loader):
    batches = batches_of(with_settings(config, loader=loader))
    first = read_epoch(batches, 4)[0]
    read_epoch(batches, 0)
    assert torch.equal(read_epoch(batches, 4)[0], first)
    assert not torch.equal(read_epoch(batches, 5)[0], first)


def test_stopping_early_leaves_no_thread(config):
    batches = batches_of(config)
    for epoch in range(3):
        with batches.epoch(epoch) as iterator:
            next(iterator)


def test_an_error_in_the_training_step_leaves_no_thread(config):
    with pytest.raises(ZeroDivisionError), batches_of(config).epoch(0) as iterator:
        raise ZeroDivisionError(next(iterator))


def test_a_decoder_that_fails_ends_the_epoch_at_once(config, monkeypatch):
    batches = batches_of(config)

    def fail(*arguments):
        raise RuntimeError("decoder died")

    monkeypatch.setattr(batches, "_decode_batch", fail)
    with pytest.raises(RuntimeError, match="decoder died"):
        read_epoch(batches)


def test_a_decoder_that_hangs_is_reported_with_the_file(config, monkeypatch):
    batches = batches_of(config)
    assert isinstance(batches, StreamingBatches)
    batches.stall_seconds = 0.2
    released = threading.Event()

    def hang(*arguments):
        released.wait()
        return -1

    monkeypatch.setattr(batches, "_decode_batch", hang)
    before = set(threading.enumerate())
    with pytest.raises(TimeoutError, match=r"train.beton: no batch for 0.2 seconds"):
        read_epoch(batches)
    released.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)


def test_the_number_of_torch_threads_is_left_alone(config):
    read_epoch(batches_of(with_settings(config, decode_threads=2)))
    assert torch.get_num_threads() == 1


def test_a_damaged_jpeg_is_reported_with_its_number(large):
    beton = open_beton(Path(large.prepared_dir) / "test.beton")
    data = np.array(beton.data)
    start, length = beton.table[2, :2]
    data[start + length // 2 : start + length] = 0
    batches = batches_of(large, "test")
    assert isinstance(batches, StreamingBatches)
    batches.beton = Beton(beton.path, beton.table, beton.labels, data)
    with pytest.raises(ValueError, match=r"test.beton: image 2 is damaged"):
        read_epoch(batches)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"batch_size": 32}, r"batch_size is 32, but .*train.beton holds 20 images"),
        ({}, {"batch_size": 2, "num_workers": 3}, "at least the number of workers, 3, got 2"),
        ({}, {"image_size": 24}, r"pad4 needs images of 24x24 pixels, .* \[32, 32\]"),
    ],
)
def test_arguments_that_do_not_fit_the_split_are_refused(config, settings, arguments, message):
    with pytest.raises(ValueError, match=message):
        batches_of(with_settings(config, **settings), **arguments)


def test_images_of_several_sizes_do_not_fit_into_memory(large):
    with pytest.raises(ValueError, match=r"memory needs square images .* use data.loader: ffcv"):
        batches_of(with_settings(large, loader="memory"))


@pytest.fixture
def copied(config, tmp_path):
    """A prepared data set that a test may damage."""
    for path in Path(config.prepared_dir).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return with_settings(config, prepared_dir=str(tmp_path))


def test_a_missing_file_says_how_to_prepare_it(copied):
    (Path(copied.prepared_dir) / "train.beton").unlink()
    with pytest.raises(FileNotFoundError, match=r"train.beton: no such file; run pipelines/prep"):
        batches_of(copied)


def test_a_file_shorter_than_its_sidecar_says_is_refused_with_both_sizes(copied):
    path = Path(copied.prepared_dir) / "train.beton"
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    size = len(content)
    with pytest.raises(ValueError, match=rf"has {size - 7} bytes, but .*json says {size}"):
        batches_of(copied)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "is truncated: .* bytes, but its 6 images need"),
        (lambda content: content[:3000], "is truncated"),
        (lambda content: content[:10], "is no FFCV file: 10 bytes are too few"),
        (lambda content: bytes(len(content)), "is unfinished"),
        (lambda content: content[:16] + bytes(8) + content[24:], "is unfinished"),
        (lambda content: b"PK" + content[2:], "is no FFCV file of version 2"),
        (lambda content: content[:2100] + bytes(100) + content[2200:], "is damaged: its tables"),
        (lambda content: content + bytes(24), "is damaged: its tables"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(copied, damage, message):
    path = Path(copied.prepared_dir) / "test.beton"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        open_beton(path)


def test_a_file_with_other_fields_is_refused_with_their_names(copied):
    path = Path(copied.prepared_dir) / "test.beton"
    content = path.read_bytes()
    begin = content.index(b"\x02image\0")
    path.write_bytes(content[:begin] + b"\x00covar" + content[begin + 6 :])
    message = r"fields image \(RGBImageField\), label .* has covar \(FloatField\), label"
    with pytest.raises(ValueError, match=message):
        open_beton(path)


def test_a_label_that_is_no_class_is_refused(copied):
    sidecar = Path(copied.prepared_dir) / "test.beton.json"
    sidecar.write_text(sidecar.read_text().replace('"dog"', '"dog", "bird"', 1))
    train = Path(copied.prepared_dir) / "train.beton.json"
    train.write_text(train.read_text().replace(',\n  "dog"', ""))
    with pytest.raises(ValueError, match="image 3 has label 1, but there are 1 classes"):
        batches_of(copied, "test")


def test_many_threads_and_slow_readers_get_the_right_pictures(config):
    settings = with_settings(config, decode_threads=2, crop="none", flip=False)
    expected, _ = read_epoch(batches_of(with_settings(settings, loader="memory"), batch_size=2))
    with batches_of(settings, batch_size=2).epoch(0) as iterator:
        for number, (images, _) in enumerate(iterator):
            time.sleep(0.01)
            assert torch.equal(images, expected[2 * number : 2 * number + 2])
