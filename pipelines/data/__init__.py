"""Images: sources, prepared files, and batches for training and evaluation."""

import os

# FFCV starts numba's threads when it is imported. Those of TBB, which OpenCV may bring along, keep
# a process that may use one CPU only from ever ending.
os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")

from pipelines.data.config import DataConfig, Split, prepared_folder
from pipelines.data.images import UnreadableImageError, decode_rgb
from pipelines.data.loader import open_batches
from pipelines.data.preparation import prepare
from pipelines.data.sidecar import DatasetInfo, verify
from pipelines.data.staged import staged_data

__all__ = [
    "DataConfig",
    "DatasetInfo",
    "Split",
    "UnreadableImageError",
    "decode_rgb",
    "open_batches",
    "prepare",
    "prepared_folder",
    "staged_data",
    "verify",
]
