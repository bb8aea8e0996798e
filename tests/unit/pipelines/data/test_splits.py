"""Held-out validation images."""

import numpy as np
import pytest

from pipelines.data.splits import hold_out


def test_hold_out_takes_same_share_of_every_class_and_keeps_the_rest():
    labels = np.repeat([0, 1, 2], [100, 50, 2])
    kept, held = hold_out(labels, 0.1, 7, ("a", "b", "c"))
    assert np.bincount(labels[held]).tolist() == [10, 5, 1]
    assert sorted([*kept, *held]) == list(range(152))
    assert np.array_equal(held, hold_out(labels, 0.1, 7, ("a", "b", "c"))[1])
    assert not np.array_equal(held, hold_out(labels, 0.1, 8, ("a", "b", "c"))[1])


def test_class_with_one_image_cannot_be_held_out():
    with pytest.raises(ValueError, match="class 'b' has 1 training images"):
        hold_out(np.array([0, 0, 1]), 0.5, 0, ("a", "b"))
