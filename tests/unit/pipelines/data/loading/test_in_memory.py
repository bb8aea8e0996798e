"""Batches of a split held in memory."""

import pytest

from tests.support.image_files import (
    batches_of,
    with_settings,
)


def test_memory_loader_rejects_images_of_several_sizes(prepared_jpeg):
    with pytest.raises(ValueError, match=r"memory needs square images .* use data.loader: ffcv"):
        batches_of(with_settings(prepared_jpeg, loader="memory"))
