"""Validation of the data configuration."""

import pytest

from pipelines.data.config import DataConfig
from tests.support.image_files import with_settings


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
        ({"jpeg_quality": 0}, "data.jpeg_quality must be from 1 to 100"),
        ({"source": "parquet"}, "data.source_dir must name the folder"),
    ],
)
def test_invalid_setting_raises_error_with_its_name(settings, message):
    with pytest.raises(ValueError, match=message):
        with_settings(DataConfig(), **settings)
