"""Batches decoded from a file: threads, errors and hangs."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.data.format.beton import Beton, open_beton
from pipelines.data.loading.streaming import StreamingBatches
from tests.support.image_files import (
    batches_of,
    read_epoch,
    with_settings,
)


def test_training_image_is_the_padded_crop_of_its_box(prepared):
    batches = batches_of(prepared)
    assert isinstance(batches, StreamingBatches)
    images, _ = read_epoch(batches, 1)
    stored = read_epoch(batches_of(with_settings(prepared, crop="none", flip=False)), 1)[0]
    boxes = batches.sampler.epoch(1).boxes
    assert len({tuple(box) for box in boxes.tolist()}) > 10
    for image, original, (top, left, _, _, mirrored) in zip(images, stored, boxes, strict=True):
        padded = torch.nn.functional.pad(original, (4, 4, 4, 4))
        window = padded[:, top + 4 : top + 36, left + 4 : left + 36]
        assert torch.equal(image, window.flip(2) if mirrored else window)


def test_epoch_stopped_early_leaves_no_thread(prepared):
    batches = batches_of(prepared)
    for epoch in range(3):
        with batches.epoch(epoch) as iterator:
            next(iterator)


def test_error_in_training_step_leaves_no_thread(prepared):
    with pytest.raises(ZeroDivisionError), batches_of(prepared).epoch(0) as iterator:
        raise ZeroDivisionError(next(iterator))


def test_failing_decoder_ends_the_epoch(prepared, monkeypatch):
    batches = batches_of(prepared)

    def fail(*arguments):
        raise RuntimeError("decoder died")

    monkeypatch.setattr(batches, "_decode_batch", fail)
    with pytest.raises(RuntimeError, match="decoder died"):
        read_epoch(batches)


def test_hanging_decoder_raises_error_with_file_name(prepared, monkeypatch):
    batches = batches_of(prepared)
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


def test_number_of_torch_threads_is_unchanged(prepared):
    read_epoch(batches_of(with_settings(prepared, decode_threads=2)))
    assert torch.get_num_threads() == 1


def test_damaged_jpeg_raises_error_with_its_number(prepared_jpeg):
    beton = open_beton(Path(prepared_jpeg.prepared_dir) / "test.beton")
    data = np.array(beton.data)
    start, length = beton.table[2, :2]
    data[start + length // 2 : start + length] = 0
    batches = batches_of(prepared_jpeg, "test")
    assert isinstance(batches, StreamingBatches)
    batches.beton = Beton(beton.path, beton.table, beton.labels, data)
    with pytest.raises(ValueError, match=r"test.beton: image 2 is damaged"):
        read_epoch(batches)


def test_slow_reader_with_several_threads_gets_correct_images(prepared):
    settings = with_settings(prepared, decode_threads=2, crop="none", flip=False)
    expected, _ = read_epoch(batches_of(with_settings(settings, loader="memory"), batch_size=2))
    with batches_of(settings, batch_size=2).epoch(0) as iterator:
        for number, (images, _) in enumerate(iterator):
            time.sleep(0.01)
            assert torch.equal(images, expected[2 * number : 2 * number + 2])
