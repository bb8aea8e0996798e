"""Configuration of the image data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from cluster.paths import path_field
from cluster.storage.s3 import check_uri, is_uri
from ranet.checks import check_choices, check_range

Split: TypeAlias = Literal["train", "val", "test"]
"""train: fits the weights; val: held out of the training images, decides every choice; test: final
evaluation only."""

SPLITS: tuple[Split, ...] = ("train", "val", "test")

Channels: TypeAlias = tuple[float, float, float]
"""One number each for red, green and blue."""

MAX_PIXELS = 100_000_000
"""Default of `data.max_pixels`; decoding takes up to about ten bytes per pixel."""

LOCAL_SOURCES = ("imagefolder", "parquet")
"""Sources whose files the user provides in `data.source_dir`."""


SOURCE_SETTINGS = ("data.source_dir", "data.class_index", "data.max_pixels")
"""Settings that determine the images and class names of a source."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Data augmentation of training images."""

    crop: Literal["none", "pad4", "random_resized"] = "pad4"
    """Crop of training images. pad4: random crop of the image padded with 4 black pixels;
    random_resized: random 8 to 100 % of the area, resized; none: the crop of evaluation."""
    flip: bool = True
    """Mirror training images horizontally with probability 0.5."""

    def __post_init__(self) -> None:
        check_choices(self, "data.augment")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Image source, splits, storage format and loading.

    The use of the splits cannot be configured: validation images are always held out of the
    training images, and the test split is the source's own test set (a fixed share for digits,
    which has none).
    """

    source: Literal["digits", "cifar10", "cifar100", "imagefolder", "parquet"] = "cifar10"
    """Source of the images. digits: scikit-learn's handwritten digits; imagefolder:
    train/<class>/<image> and val/<class>/<image> in source_dir, val being the test set; parquet:
    one *-train.parquet and one *-test.parquet in source_dir, with columns image (bytes) and
    label."""
    source_dir: str = path_field("")
    """Folder of the source's files, for imagefolder a path or s3://bucket/folder. Empty:
    data/downloads for cifar10 and cifar100, which are downloaded if missing. Not needed once the
    files are prepared."""
    prepared_dir: str = path_field("")
    """Folder of the prepared files: a path, or s3://bucket/folder, which every node copies to its
    disk. Empty: data/<source>, followed by the image size for digits and by the name of source_dir
    for imagefolder and parquet."""
    class_index: str = path_field("")
    """Text or JSON file with the names of the class folders in label order, for imagefolder, so
    that a subset of the classes keeps its labels. Empty: folder names in alphabetical order."""
    loader: Literal["ffcv", "memory"] = "ffcv"
    """ffcv: decode images during training; memory: keep the whole split on the device, for small
    images of one size."""
    shuffle: Literal["full", "blocks"] = "full"
    """Shuffling of the training images. full: all images; blocks: blocks of 16 neighbouring images,
    then the images within windows of 1,024 blocks, for files larger than a node's memory."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of training images."""
    mean: Channels | None = None
    """Mean of red, green and blue, from 0 to 1, subtracted by normalization. null: the mean of the
    training images, computed during preparation."""
    std: Channels | None = None
    """Standard deviation of red, green and blue, above 0 and at most 1; divisor of normalization.
    null: that of the training images, computed during preparation."""
    validation_share: float = 0.1
    """Share of each class's training images that is held out for validation."""
    split_seed: int = 0
    """Seed of the random choice of validation images."""
    max_side: int = 0
    """Max longer side of stored images, in pixels; larger images are shrunk. 0: no maximum."""
    max_pixels: int = MAX_PIXELS
    """Max number of pixels of a source image, compared before the image is decoded, so that a
    small file cannot fill the memory. Larger images count as unreadable."""
    image_format: Literal["raw", "jpeg"] = "raw"
    """Format of stored images. raw: pixels, fast and exact; jpeg: several times smaller, slower to
    read."""
    jpeg_quality: int = 90
    """JPEG quality of stored images, from 1 to 100."""
    decode_threads: int = 0
    """Decoding threads per worker; 0: one per CPU that the process may use."""

    def __post_init__(self) -> None:
        check_choices(self, "data")
        check_range(
            self,
            "data",
            split_seed=(0, None),
            max_side=(0, None),
            max_pixels=(1, None),
            jpeg_quality=(1, 100),
            decode_threads=(0, None),
        )
        for name in ("mean", "std"):
            if getattr(self, name) is None:
                continue
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != 3 or not all(0 <= value <= 1 for value in values):
                raise ValueError(f"data.{name} must be three numbers in 0..1, got {values}")
        if self.std is not None and min(self.std) == 0:
            raise ValueError(f"data.std must be above 0, got {self.std}")
        if not 0 < self.validation_share < 1:
            raise ValueError(
                f"data.validation_share must be above 0 and below 1, got {self.validation_share}: "
                "checkpoints and thresholds are chosen on held-out images"
            )
        if "://" in self.prepared_dir:
            check_uri("data.prepared_dir", self.prepared_dir)
        if "://" in self.source_dir:
            check_uri("data.source_dir", self.source_dir)
            if self.source != "imagefolder":
                raise ValueError(
                    "data.source_dir may be an S3 URI only for data.source imagefolder, got "
                    f"{self.source_dir} for {self.source}; give a path"
                )
        if self.class_index and self.source != "imagefolder":
            raise ValueError(
                "data.class_index is allowed only for data.source imagefolder, got "
                f"{self.source}; remove it"
            )
        if self.source in LOCAL_SOURCES and not (self.source_dir or self.prepared_dir):
            raise ValueError(
                f"data.source_dir must name the folder of the {self.source} files; "
                "data.prepared_dir is sufficient once they are prepared"
            )


def normalization(config: DataConfig) -> tuple[Channels, Channels]:
    """Return mean and standard deviation, which are set or were inserted."""
    assert config.mean is not None
    assert config.std is not None
    return config.mean, config.std


def prepared_path(config: DataConfig, image_size: int) -> str:
    """Return the absolute path or S3 URI of the prepared files."""
    if is_uri(config.prepared_dir):
        return config.prepared_dir
    name = config.source
    if config.source == "digits":
        name = f"digits-{image_size}"
    elif config.source in LOCAL_SOURCES:
        name = f"{config.source}-{Path(config.source_dir).resolve().name}"
    return str(Path(config.prepared_dir or Path("data") / name).absolute())


def prepared_settings(config: DataConfig, image_size: int) -> dict[str, str | int | float]:
    """Return the settings that determine the content of prepared files.

    The source itself is compared by its images and class names, wherever it is.
    """
    settings: dict[str, str | int | float] = {
        f"data.{name}": getattr(config, name)
        for name in ("source", "validation_share", "split_seed", "max_side", "image_format")
    }
    if config.image_format == "jpeg":
        settings["data.jpeg_quality"] = config.jpeg_quality
    if config.source == "digits":
        settings["model.image_size"] = image_size
    return settings
