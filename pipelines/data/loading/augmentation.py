"""Crop boxes and mirroring of images, shared by all loaders.

Random numbers are hashes of (seed, epoch, sample index, position), so an augmented image depends
neither on the number of workers nor on the step at which a run was resumed.
"""

import math

import numpy as np

from pipelines.data.config import DataConfig

PADDING = 4
SCALE = (0.08, 1.0)
"""Min and max share of the area in a random resized crop."""
RATIO = (3 / 4, 4 / 3)
"""Min and max ratio of width to height of a random resized crop."""
ATTEMPTS = 10
EVALUATED_SHARE = 224 / 256
"""Share of the shorter side that evaluation keeps: resize to 256, crop 224."""


def _mix(values: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's output function (Steele, Lea and Flood, OOPSLA 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class SampleRandom:
    """Uniform random numbers of one epoch, one stream per sample."""

    def __init__(self, seed: int, epoch: int, samples: np.ndarray) -> None:
        key = _mix(_mix(np.array([seed], np.uint64)) ^ np.uint64(epoch))
        self.keys = _mix(_mix(samples.astype(np.uint64)) ^ key)

    def uniform(self, position: int, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the uniform number at a position of the samples' streams."""
        bits = _mix(self.keys[rows] + np.uint64(position))
        return (bits >> np.uint64(11)) * 2.0**-53


def training_boxes(
    config: DataConfig,
    image_size: int,
    seed: int,
    epoch: int,
    samples: np.ndarray,
    sizes: np.ndarray,
) -> np.ndarray:
    """Choose a crop box and mirroring for each training image.

    Args:
        config: Settings with the augmentation.
        image_size: Height and width of the result, in pixels.
        seed: Seed of the run.
        epoch: Epoch, counted from 0.
        samples: Indices in the training file (samples,).
        sizes: Height and width of those images (samples, 2).

    Returns:
        Top, left, height, width and mirrored (0 or 1): (samples, 5), int64. A box of pad4 may
        extend beyond the image; the pixels outside are black.
    """
    random = SampleRandom(seed, epoch, samples)
    if config.augment.crop == "pad4":
        offsets = [
            np.floor(random.uniform(1 + axis) * (2 * PADDING + 1)) - PADDING for axis in (0, 1)
        ]
        boxes = np.stack([*offsets, *np.full((2, len(samples)), image_size)], axis=1)
    elif config.augment.crop == "random_resized":
        boxes = _random_resized(random, sizes)
    else:
        boxes = evaluation_boxes(image_size, sizes)[:, :4]
    mirrored = (random.uniform(0) < 0.5) if config.augment.flip else np.zeros(len(samples))
    return np.column_stack([boxes, mirrored]).astype(np.int64)


def evaluation_boxes(
    image_size: int, sizes: np.ndarray, share: float = EVALUATED_SHARE
) -> np.ndarray:
    """Return evaluation crops: whole images of the right size, or central squares.

    The side of a square is a share of the shorter side.
    """
    heights, widths = sizes[:, 0], sizes[:, 1]
    fits = (heights == image_size) & (widths == image_size)
    side = np.round(np.minimum(heights, widths) * share)
    side = np.where(fits, image_size, np.maximum(side, 1))
    top, left = (heights - side) // 2, (widths - side) // 2
    return np.stack([top, left, side, side, np.zeros_like(top)], axis=1).astype(np.int64)


def _random_resized(random: SampleRandom, sizes: np.ndarray) -> np.ndarray:
    """Sample boxes as torchvision's RandomResizedCrop: ten attempts, then a central crop."""
    heights, widths = sizes[:, 0].astype(float), sizes[:, 1].astype(float)
    ratio = np.clip(widths / heights, *RATIO)
    width = np.minimum(widths, np.round(heights * ratio))
    height = np.minimum(heights, np.round(widths / ratio))
    boxes = np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)
    open_rows = np.arange(len(sizes))
    for attempt in range(ATTEMPTS):
        area, shape, down, right = (
            random.uniform(1 + 4 * attempt + part, open_rows) for part in range(4)
        )
        area = heights[open_rows] * widths[open_rows] * (SCALE[0] + area * (SCALE[1] - SCALE[0]))
        log_low, log_high = math.log(RATIO[0]), math.log(RATIO[1])
        shape = np.exp(log_low + shape * (log_high - log_low))
        width, height = np.round(np.sqrt(area * shape)), np.round(np.sqrt(area / shape))
        spare_down, spare_right = heights[open_rows] - height, widths[open_rows] - width
        good = (spare_down >= 0) & (spare_right >= 0) & (height > 0) & (width > 0)
        top, left = np.floor(down * (spare_down + 1)), np.floor(right * (spare_right + 1))
        boxes[open_rows[good]] = np.stack([top, left, height, width], axis=1)[good]
        open_rows = open_rows[~good]
    return boxes
