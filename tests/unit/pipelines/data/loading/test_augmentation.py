"""Distribution and determinism of crop boxes."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from pipelines.data.config import DataConfig
from pipelines.data.loading.augmentation import SampleRandom, evaluation_boxes, training_boxes
from tests.support.image_files import (
    with_settings,
)

SIZES = np.full((1000, 2), 32)


def boxes(samples: Sequence[int] = range(1000), *, sizes=None, seed=0, epoch=0, **settings):
    sizes = np.full((len(samples), 2), 32) if sizes is None else sizes
    return training_boxes(
        with_settings(DataConfig(), **settings), 32, seed, epoch, np.array(samples), sizes
    )


@pytest.mark.parametrize("crop", ["pad4", "random_resized"])
def test_augmentation_of_a_sample_does_not_depend_on_its_batch(crop):
    assert np.array_equal(boxes([5, 900, 7], crop=crop)[1:], boxes([900, 7], crop=crop))
    assert not np.array_equal(boxes(crop=crop, epoch=1), boxes(crop=crop))
    assert not np.array_equal(boxes(crop=crop, seed=1), boxes(crop=crop))
    assert not np.array_equal(boxes(crop=crop, seed=1), boxes(crop=crop, epoch=1))


def test_random_numbers_are_uniform_and_independent():
    random = SampleRandom(1, 2, np.arange(100_000))
    draws = np.stack([random.uniform(draw) for draw in range(4)])
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.stack([np.histogram(draw, 20, (0, 1))[0] for draw in draws])
    assert np.abs(counts - 5000).max() < 350  # five standard deviations
    neighbours = np.corrcoef(np.vstack([draws, np.roll(draws[0], 1)]))
    assert np.abs(neighbours - np.eye(5)).max() < 0.02


def test_pad4_crops_cover_all_81_offsets_and_mirror_half_of_the_images():
    chosen = boxes(range(20_000))
    offsets, counts = np.unique(chosen[:, :2], axis=0, return_counts=True)
    assert len(offsets) == 81
    assert offsets.min() == -4
    assert offsets.max() == 4
    assert counts.min() > 170  # 247 are expected
    assert abs(chosen[:, 4].mean() - 0.5) < 0.02
    assert (chosen[:, 2:4] == 32).all()


def test_training_boxes_without_augmentation_equal_evaluation_boxes():
    assert np.array_equal(boxes(crop="none", flip=False), evaluation_boxes(32, SIZES))


def test_random_resized_crops_are_inside_and_distributed_as_in_torchvision():
    sizes = np.tile([[300, 400]], (20_000, 1))
    ours = boxes(range(20_000), crop="random_resized", sizes=sizes)
    top, left, height, width = ours[:, :4].T
    assert ours[:, :4].min() >= 0
    assert (top + height).max() <= 300
    assert (left + width).max() <= 400
    image = torch.empty(3, 300, 400)
    torch.manual_seed(0)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(5000)]
    )
    for share in (0.1, 0.5, 0.9):
        difference = np.quantile(ours[:, :4], share, axis=0) - np.quantile(theirs, share, axis=0)
        assert np.abs(difference).max() < 12


@pytest.mark.parametrize(
    ("size", "expected"), [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))]
)
def test_random_resized_crop_of_long_image_falls_back_to_center(size, expected):
    chosen = boxes([1, 2, 3], crop="random_resized", sizes=np.array([size] * 3))
    assert expected in [tuple(box) for box in chosen[:, :4].tolist()]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 32), (0, 0, 32, 32, 0)),
        ((256, 256), (16, 16, 224, 224, 0)),
        ((256, 512), (16, 144, 224, 224, 0)),
        ((64, 40), (14, 2, 35, 35, 0)),
    ],
)
def test_evaluation_box_is_whole_image_or_seven_eighths_of_shorter_side(size, expected):
    assert evaluation_boxes(32, np.array([size])).tolist() == [list(expected)]
