"""Order of an epoch over workers and batches."""

import numpy as np
import pytest

from pipelines.data.config import DataConfig
from pipelines.data.loading.sampling import (
    BLOCK_IMAGES,
    WINDOW_IMAGES,
    EpochSampler,
    training_order,
)

SIZES = np.full((1000, 2), 32)


def planner(**settings) -> EpochSampler:
    defaults = {
        "config": DataConfig(),
        "is_training": True,
        "sizes": SIZES,
        "image_size": 32,
        "global_batch_size": 12,
        "rank": 0,
        "num_workers": 1,
        "seed": 3,
    }
    return EpochSampler(**defaults | settings)


@pytest.mark.parametrize("order", ["full", "blocks"])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 5, 7, 12])
def test_workers_read_slices_of_the_same_global_batches(num_workers, order):
    config = DataConfig(shuffle=order)
    whole = planner(config=config).epoch(5)
    parts = [
        planner(config=config, rank=rank, num_workers=num_workers).epoch(5)
        for rank in range(num_workers)
    ]
    for number in range(83):
        samples, chosen = whole[number]
        assert np.array_equal(np.concatenate([part[number][0] for part in parts]), samples)
        assert np.array_equal(np.concatenate([part[number][1] for part in parts]), chosen)
        sizes = [len(part[number][0]) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    assert [len(part) for part in parts] == [83] * num_workers


@pytest.mark.parametrize("order", ["full", "blocks"])
def test_epoch_with_changing_number_of_workers_is_read_exactly_once_in_order(order):
    config = DataConfig(shuffle=order)
    expected = planner(config=config).epoch(5)
    read = []
    for first, last, num_workers in ((0, 20, 2), (20, 21, 1), (21, 50, 5), (50, 83, 2)):
        plans = [
            planner(config=config, rank=rank, num_workers=num_workers).epoch(5, first)
            for rank in range(num_workers)
        ]
        for number in range(last - first):
            read += [plan[number] for plan in plans]
    assert np.array_equal(np.concatenate([samples for samples, _ in read]), expected.samples)
    assert np.array_equal(np.concatenate([chosen for _, chosen in read]), expected.boxes)
    assert len(set(expected.samples.tolist())) == 83 * 12


def test_dropped_images_differ_between_epochs():
    left_out = [set(range(1000)) - set(planner().epoch(k).samples.tolist()) for k in range(8)]
    assert {len(each) for each in left_out} == {4}
    assert len(set.union(*left_out)) > 4 * 6


def test_order_is_numpy_permutation_of_seed_and_epoch():
    expected = np.random.default_rng((3, 5)).permutation(1000)[:996]
    assert np.array_equal(planner().epoch(5).samples, expected)


def test_block_shuffling_mixes_classes_and_keeps_blocks_within_windows():
    num_images = 100 * 1000 + 5  # of 1,000 classes, one after the other
    order = training_order("blocks", num_images, 3, 5)
    assert np.array_equal(np.sort(order), np.arange(num_images))
    assert not np.array_equal(order, training_order("blocks", num_images, 3, 6))
    assert not np.array_equal(order, training_order("blocks", num_images, 4, 5))
    for first in range(0, num_images, WINDOW_IMAGES):
        window = order[first : first + WINDOW_IMAGES]
        num_blocks = len(window) / BLOCK_IMAGES
        assert num_blocks <= len(np.unique(window // BLOCK_IMAGES)) <= num_blocks + 2
        assert np.mean(np.abs(np.diff(window)) < BLOCK_IMAGES) < 0.01  # not in their old order
    batches = order[: num_images // 256 * 256].reshape(-1, 256) // 100
    classes = np.mean([len(np.unique(batch)) for batch in batches])
    assert classes > 190  # 226 where any image may follow any other


@pytest.mark.parametrize(("num_workers", "first_step"), [(1, 0), (2, 0), (3, 40)])
def test_each_image_is_prefetched_once_before_it_is_read(num_workers, first_step):
    sizes = np.full((40_000, 2), 32)
    settings = {"config": DataConfig(shuffle="blocks"), "sizes": sizes, "global_batch_size": 256}
    for rank in range(num_workers):
        plan = planner(**settings, rank=rank, num_workers=num_workers).epoch(5, first_step)
        asked = []
        for number in range(len(plan)):
            asked += plan.samples_to_prefetch(number).tolist()
            assert set(plan[number][0].tolist()) <= set(asked)
        assert sorted(asked) == sorted(plan.samples.tolist())
    plan = planner(**settings | {"config": DataConfig()}).epoch(5)
    assert not any(len(plan.samples_to_prefetch(number)) for number in range(len(plan)))


@pytest.mark.parametrize("num_samples", [1, 5, 12, 13, 100])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_evaluation_reads_each_image_exactly_once_over_all_workers(num_samples, num_workers):
    sizes = np.full((num_samples, 2), 32)
    read = []
    for rank in range(num_workers):
        ours = planner(is_training=False, sizes=sizes, rank=rank, num_workers=num_workers)
        plan = ours.epoch(0)
        assert len(plan) == len(ours)
        batches = [plan[number][0] for number in range(len(plan))]
        assert all(0 < len(batch) <= ours.batch_size for batch in batches)
        read += [sample for batch in batches for sample in batch]
    assert sorted(read) == list(range(num_samples))
