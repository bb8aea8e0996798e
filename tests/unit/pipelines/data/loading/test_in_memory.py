"""Batches of a split held in memory."""

import pytest
import torch

from pipelines.data.loading.in_memory import MemoryBatches
from tests.support.fake_gpu import GpuOperators, fake_gpu
from tests.support.image_files import (
    batches_of,
    with_settings,
)


def test_memory_loader_rejects_images_of_several_sizes(prepared_jpeg):
    with pytest.raises(ValueError, match=r"memory needs square images .* use data.loader: ffcv"):
        batches_of(with_settings(prepared_jpeg, loader="memory"))


@pytest.mark.parametrize("crop", ["pad4", "random_resized"])
def test_epoch_never_waits_for_the_gpu(prepared, crop):
    batches = batches_of(with_settings(prepared, loader="memory", crop=crop))
    assert isinstance(batches, MemoryBatches)
    with fake_gpu(), GpuOperators() as used:
        for name in ("images", "labels"):
            setattr(batches, name, torch.empty_like(getattr(batches, name), device="cuda"))
        with batches.epoch(0) as reader:
            for images, labels in reader:
                assert images.is_cuda
                assert labels.is_cuda
    assert used.num_reads == 0
