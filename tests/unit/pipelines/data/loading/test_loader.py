"""Batches of a prepared split: images, order and invalid arguments."""

from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from pipelines.data.format.beton import open_beton
from pipelines.data.preparation.prepare import prepare
from tests.support.image_files import (
    batches_of,
    folder_config,
    image_folder,
    pixels,
    read_epoch,
    with_settings,
)


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_batches_are_uint8_channels_last_with_int64_labels(prepared, loader):
    batches = batches_of(with_settings(prepared, loader=loader))
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
def test_both_loaders_yield_identical_training_images(prepared, crop, flip):
    settings = with_settings(prepared, crop=crop, flip=flip)
    ffcv_images, ffcv_labels = read_epoch(batches_of(settings), 3)
    memory_images, memory_labels = read_epoch(
        batches_of(with_settings(settings, loader="memory")), 3
    )
    assert torch.equal(ffcv_images, memory_images)
    assert torch.equal(ffcv_labels, memory_labels)


def test_both_loaders_resize_to_similar_images(tmp_path):
    config = folder_config(image_folder(tmp_path / "tree", size=48), crop="random_resized")
    prepare(config, 32)
    ours, _ = read_epoch(batches_of(config))
    memory, _ = read_epoch(batches_of(with_settings(config, loader="memory")))
    assert (ours.float() - memory.float()).abs().mean() < 3


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_evaluation_resizes_and_crops_as_torchvision_does(prepared_jpeg, loader):
    images, _ = read_epoch(
        batches_of(with_settings(prepared_jpeg, loader=loader), "test", image_size=28)
    )
    transform = v2.Compose([v2.Resize(32), v2.CenterCrop(28)])
    for image, seed in zip(images, (0, 1, 0, 1), strict=True):
        expected = transform(torch.tensor(pixels(seed, 80, 64)).permute(2, 0, 1))
        assert (image.float() - expected.float()).abs().mean() < 2


def test_jpeg_file_has_original_sizes_and_is_compressed(prepared_jpeg):
    stored = with_settings(prepared_jpeg, crop="none", flip=False)
    beton = open_beton(Path(prepared_jpeg.prepared_dir) / "test.beton")
    assert beton.sizes.tolist() == [[80, 64]] * 4
    assert (beton.table[:, 4] == 1).all()
    assert beton.table[:, 1].max() < 80 * 64 * 3 / 4
    assert read_epoch(batches_of(stored, "test"))[0].float().std() > 20


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_shuffling_blocks_yields_same_images_in_other_order(prepared, loader):
    orders = [
        read_epoch(batches_of(with_settings(prepared, loader=loader, shuffle=order)), 1)
        for order in ("full", "blocks")
    ]
    one, other = (
        sorted((label, images.numpy().tobytes()) for images, label in zip(*read, strict=True))
        for read in orders
    )
    assert one == other
    assert not torch.equal(orders[0][0], orders[1][0])


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_two_workers_read_the_same_batches_as_one(prepared, loader):
    settings = with_settings(prepared, loader=loader)
    single, labels = read_epoch(batches_of(settings), 2)
    halves = [read_epoch(batches_of(settings, rank=rank, num_workers=2), 2) for rank in (0, 1)]
    joined = torch.stack([half[0].reshape(5, 2, 3, 32, 32) for half in halves], 1)
    assert torch.equal(joined.reshape(single.shape), single)
    joined = torch.stack([half[1].reshape(5, 2) for half in halves], 1)
    assert torch.equal(joined.reshape(-1), labels)


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_batch_not_divisible_by_workers_is_read_completely(prepared, loader):
    settings = with_settings(prepared, loader=loader)
    single, labels = read_epoch(batches_of(settings, batch_size=5), 2)
    parts = [batches_of(settings, batch_size=5, rank=rank, num_workers=3) for rank in range(3)]
    read = []
    for part in parts:
        with part.epoch(2) as iterator:
            read.append([(images.clone(), labels) for images, labels in iterator])
    assert [len(batches) for batches in read] == [4, 4, 4]
    assert [len(batches[0][1]) for batches in read] == [2, 2, 1]
    joined = [batches[number] for number in range(4) for batches in read]
    assert torch.equal(torch.cat([images for images, _ in joined]), single)
    assert torch.equal(torch.cat([labels for _, labels in joined]), labels)


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
@pytest.mark.parametrize("first_step", [0, 1, 3, 5])
def test_epoch_opened_at_a_step_yields_remaining_batches(prepared, loader, first_step):
    batches = batches_of(with_settings(prepared, loader=loader))
    images, labels = read_epoch(batches, 2)
    with batches.epoch(2, first_step) as iterator:
        rest = [(images.clone(), labels) for images, labels in iterator]
    assert len(rest) == 5 - first_step
    for number, (rest_images, rest_labels) in enumerate(rest, start=first_step):
        rows = slice(4 * number, 4 * number + 4)
        assert torch.equal(rest_images, images[rows])
        assert torch.equal(rest_labels, labels[rows])


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
@pytest.mark.parametrize("crop", ["none", "random_resized"])
def test_progressive_sizes_change_image_size_and_not_content(prepared, loader, crop):
    settings = with_settings(prepared, loader=loader, crop=crop)
    large = batches_of(settings, epoch_sizes=[32, 32, 32])
    mixed = batches_of(settings, epoch_sizes=[16, 48, 16])
    for epoch, size in enumerate([16, 48, 16]):
        images, labels = read_epoch(mixed, epoch)
        same, expected = read_epoch(large, epoch)
        assert images.shape == (20, 3, size, size)
        assert torch.equal(labels, expected)
        if crop == "random_resized":
            expected_images = torch.nn.functional.interpolate(
                same.float(), size=(size, size), mode="bilinear", antialias=True
            )
            assert (expected_images - images).abs().mean() < 6
    val, _ = read_epoch(batches_of(settings, "val", epoch_sizes=[16, 48, 16]))
    assert val.shape[2:] == (32, 32)


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
@pytest.mark.parametrize("num_workers", [1, 2, 4, 7])
def test_validation_reads_each_image_once_for_any_number_of_workers(prepared, loader, num_workers):
    settings = with_settings(prepared, loader=loader)
    whole, _ = read_epoch(batches_of(settings, "val"))
    images = []
    for rank in range(num_workers):
        batches = batches_of(settings, "val", rank=rank, num_workers=num_workers)
        with batches.epoch(9) as iterator:
            read = [image.clone() for image, _ in iterator]
        assert len(read) == len(batches)
        images += read
    assert torch.equal(torch.cat(images), whole)
    assert len(whole) == 10


@pytest.mark.parametrize("loader", ["ffcv", "memory"])
def test_epoch_does_not_depend_on_epochs_read_before(prepared, loader):
    batches = batches_of(with_settings(prepared, loader=loader))
    first = read_epoch(batches, 4)[0]
    read_epoch(batches, 0)
    assert torch.equal(read_epoch(batches, 4)[0], first)
    assert not torch.equal(read_epoch(batches, 5)[0], first)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"batch_size": 32}, r"batch_size is 32, but .*train.beton has only 20 images"),
        ({}, {"batch_size": 2, "num_workers": 3}, "at least the number of workers, 3, got 2"),
        ({}, {"image_size": 24}, r"pad4 needs images of 24x24 pixels, .* \[32, 32\]"),
    ],
)
def test_arguments_that_do_not_fit_the_split_raise_error(prepared, settings, arguments, message):
    with pytest.raises(ValueError, match=message):
        batches_of(with_settings(prepared, **settings), **arguments)


def test_label_out_of_range_raises_error(copied):
    metadata = Path(copied.prepared_dir) / "test.beton.json"
    metadata.write_text(metadata.read_text().replace('"dog"', '"dog", "bird"', 1))
    train = Path(copied.prepared_dir) / "train.beton.json"
    train.write_text(train.read_text().replace(',\n  "dog"', ""))
    with pytest.raises(ValueError, match="image 3 has label 1, but the number of classes is 1"):
        batches_of(copied, "test")
