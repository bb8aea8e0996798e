"""Images: sources, prepared files, and batches for training and evaluation."""

import os

# FFCV starts numba's threads when it is imported. Those of TBB, which OpenCV may bring along, keep
# a process that may use one CPU only from ever ending.
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")

from pipelines.data.config import DataConfig, Split, prepared_path
from pipelines.data.format.metadata import DatasetInfo, verify
from pipelines.data.loading.loader import open_batches
from pipelines.data.loading.staging import staged_data
from pipelines.data.preparation.prepare import prepare
from pipelines.data.sources.images import UnreadableImageError, decode_rgb

__all__ = [
    "DataConfig",
    "DatasetInfo",
    "Split",
    "UnreadableImageError",
    "decode_rgb",
    "open_batches",
    "prepare",
    "prepared_path",
    "staged_data",
    "verify",
]
