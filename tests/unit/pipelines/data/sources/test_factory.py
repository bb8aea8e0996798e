"""Table of the image sources."""

from typing import get_args, get_type_hints

from pipelines.data.config import LOCAL_SOURCES, DataConfig
from pipelines.data.sources.factory import SOURCES


def test_table_has_every_source_of_the_setting():
    assert set(SOURCES) == set(get_args(get_type_hints(DataConfig)["source"]))
    assert {name for name, spec in SOURCES.items() if spec.needs_folder} == set(LOCAL_SOURCES)
