"""Requirements of a run for its images: classes, number and size."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipelines.data.config import DataConfig, Split
from pipelines.data.format.metadata import DatasetInfo
from pipelines.data.sources.base import ExpectedSize, Images, Source, read_image
from pipelines.data.sources.images import UnreadableImageError
from ranet.config import ModelConfig

INSPECTED_IMAGES = 500
"""Max number of images of a split that are decoded before the preparation."""
INSPECTING_THREADS = 4


@dataclass(frozen=True)
class ImageFacts:
    """Properties of the images that a run depends on."""

    num_classes: int
    num_train: int
    """Number of training images."""
    heights: tuple[int, int] | None
    """Min and max stored height of the training images, in pixels; None: unknown."""
    widths: tuple[int, int] | None
    """Min and max stored width of the training images, in pixels; None: unknown."""


@dataclass(frozen=True)
class Inspection:
    """Sizes and errors of some images of a split."""

    sizes: np.ndarray
    """Height and width of each readable image after shrinking (images, 2)."""
    unreadable: list[str]
    """Error message of each unreadable image."""


def inspect_images(images: Images, config: DataConfig) -> Inspection:
    """Decode up to `INSPECTED_IMAGES` images, evenly spaced."""
    total = len(images.labels)
    indices = range(0, total, max(-(-total // INSPECTED_IMAGES), 1))

    def inspect(index: int) -> tuple[int, ...] | str:
        try:
            height, width = read_image(images, index).pixels.shape[:2]
        except (UnreadableImageError, OSError) as error:
            return str(error)
        scale = min((config.max_side or max(height, width)) / max(height, width), 1)
        return int(scale * height), int(scale * width)

    with ThreadPoolExecutor(INSPECTING_THREADS) as pool:
        found = list(pool.map(inspect, indices))
    sizes = [each for each in found if not isinstance(each, str)]
    return Inspection(
        np.array(sizes, np.int64).reshape(-1, 2), [each for each in found if isinstance(each, str)]
    )


def facts_of_files(info: DatasetInfo) -> ImageFacts:
    """Return the facts about prepared images."""
    return ImageFacts(
        len(info.class_names),
        info.num_samples["train"],
        info.heights["train"],
        info.widths["train"],
    )


def facts_of_source(
    source: Source, images: Mapping[Split, Images], config: DataConfig
) -> ImageFacts:
    """Return the facts about images that are not prepared yet.

    Sizes are those of a sample, and unknown where no setting depends on them.
    """
    heights = widths = None
    if config.augment.crop == "pad4" or config.loader == "memory":
        sizes = inspect_images(images["train"], config).sizes
        if len(sizes):
            heights, widths = (
                (int(column.min()), int(column.max())) for column in (sizes[:, 0], sizes[:, 1])
            )
    return ImageFacts(len(source.class_names), len(images["train"].labels), heights, widths)


def facts_of_expected(size: ExpectedSize) -> ImageFacts:
    """Return the facts about images whose number and size are published."""
    sides = (size.side, size.side) if size.side else None
    return ImageFacts(size.num_classes, size.num_samples["train"], sides, sides)


def find_problems(
    facts: ImageFacts, config: DataConfig, model: ModelConfig, batch_size: int
) -> list[str]:
    """Return one sentence for each setting that does not fit the images."""
    problems = []
    if facts.num_classes != model.num_classes:
        problems.append(
            f"model.num_classes must be {facts.num_classes}, the number of classes of data.source "
            f"{config.source}, got {model.num_classes}"
        )
    if facts.num_train < batch_size:
        problems.append(
            f"train.batch_size is {batch_size}, but there are only {facts.num_train} training "
            "images; use a smaller batch"
        )
    if facts.heights is None or facts.widths is None:
        return problems
    sides = {*facts.heights, *facts.widths}
    [low_height, high_height], [low_width, high_width] = facts.heights, facts.widths
    described = (
        f"the training images have [height, width] [{low_height}, {low_width}] to "
        f"[{high_height}, {high_width}]"
    )
    size = model.image_size
    if config.augment.crop == "pad4" and sides != {size}:
        problems.append(
            f"data.augment.crop: pad4 needs images of {size}x{size} pixels, but {described}; use "
            "data.augment.crop: random_resized"
        )
    if config.loader == "memory" and len(sides) > 1:
        problems.append(
            f"data.loader: memory needs square images of one size, but {described}; use "
            "data.loader: ffcv"
        )
    return problems


def check_fit(config: DataConfig, model: ModelConfig, batch_size: int, facts: ImageFacts) -> None:
    """Check that a run can be trained on its images.

    Raises:
        ValueError: names every setting that does not fit.
    """
    if problems := find_problems(facts, config, model, batch_size):
        raise ValueError("; ".join(problems))
