"""Settings of the images that a network is trained and scored on."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from cluster.storage.s3 import check_uri, is_uri

Split: TypeAlias = Literal["train", "val", "test"]
"""train: fitted on; val: held out of the training images, for every choice; test: scored once."""

SPLITS: tuple[Split, ...] = ("train", "val", "test")

LOCAL_SOURCES = ("imagefolder", "parquet")
"""Sources whose images lie in a folder of the user's."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Data augmentation of training images."""

    crop: Literal["none", "pad4", "random_resized"] = "pad4"
    """Training crop. pad4: random window of the image with 4 black pixels around it;
    random_resized: random 8 to 100 % of the area, resized; none: as in evaluation."""
    flip: bool = True
    """Mirror half of the training images left to right."""

    def __post_init__(self) -> None:
        if self.crop not in ("none", "pad4", "random_resized"):
            raise ValueError(
                f"data.augment.crop must be one of none, pad4, random_resized, got {self.crop!r}"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images, their splits, how they are stored, and how they are read in training.

    Which images are fitted and which are scored is no setting: validation is always held out of
    the training images, and test is the source's own test set (digits has none: a fixed share).
    """

    source: Literal["digits", "cifar10", "cifar100", "imagefolder", "parquet"] = "cifar10"
    """digits: scikit-learn's handwritten digits; imagefolder: root/train/<class>/<image> and
    root/val/<class>/<image>, val being the test set; parquet: one *-train.parquet and one
    *-test.parquet in root, with columns image (bytes) and label."""
    source_dir: str = ""
    """Folder of the source's files; empty: data/downloads for cifar10 and cifar100, which are
    downloaded where missing. Not needed once the files are prepared."""
    prepared_dir: str = ""
    """Folder of the prepared files, a path or s3://bucket/folder, of which every node keeps a copy;
    empty: data/<source>, with the root's name or the image size behind it where they matter."""
    class_index: str = ""
    """File of class folders' names in order of label, text or JSON, for imagefolder: so a few
    classes keep the labels that they have among all; empty: the folders' names in order."""
    loader: Literal["ffcv", "memory"] = "ffcv"
    """ffcv: decode while training; memory: whole split on the device, for small equal images."""
    shuffle: Literal["full", "blocks"] = "full"
    """Order of the training images. full: any after any; blocks, for files larger than a node's
    memory: blocks of 16 neighbours are shuffled, then the images of 1,024 blocks at a time."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of training images."""
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    """Mean of red, green and blue, in 0..1, that normalisation subtracts."""
    std: tuple[float, float, float] = (0.247, 0.2435, 0.2616)
    """Standard deviation of red, green and blue, in 0..1, that normalisation divides by."""
    validation_share: float = 0.1
    """Share of each class's training images that is held out for validation."""
    split_seed: int = 0
    """Seed of the choice of validation images."""
    max_side: int = 0
    """Longer side of a stored image at most, in pixels; 0: as it is."""
    image_format: Literal["raw", "jpeg"] = "raw"
    """raw: pixels, fast and exact; jpeg: several times smaller, slower to read."""
    jpeg_quality: int = 90
    """Quality of stored JPEG images, 1 to 100."""
    decode_threads: int = 0
    """Threads that decode, per worker; 0: one per CPU that the process may use."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("source", ("digits", "cifar10", "cifar100", "imagefolder", "parquet")),
            ("loader", ("ffcv", "memory")),
            ("shuffle", ("full", "blocks")),
            ("image_format", ("raw", "jpeg")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"data.{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}"
                )
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != 3 or not all(0 <= value <= 1 for value in values):
                raise ValueError(f"data.{name} must be three numbers in 0..1, got {values}")
        if min(self.std) == 0:
            raise ValueError(f"data.std must be above 0, got {self.std}")
        if not 0 < self.validation_share < 1:
            raise ValueError(
                f"data.validation_share must lie between 0 and 1, got {self.validation_share}: "
                "checkpoints and thresholds are chosen on held-out images"
            )
        for name in ("split_seed", "max_side", "decode_threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must be 0 or more, got {getattr(self, name)}")
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"data.jpeg_quality must be 1 to 100, got {self.jpeg_quality}")
        if "://" in self.prepared_dir:
            check_uri("data.prepared_dir", self.prepared_dir)
        if "://" in self.source_dir:
            check_uri("data.source_dir", self.source_dir)
            if self.source != "imagefolder":
                raise ValueError(
                    f"data.source_dir may be in S3 for data.source imagefolder alone, got {self.source_dir} "
                    f"for {self.source}"
                )
        if self.class_index and self.source != "imagefolder":
            raise ValueError(
                f"data.class_index is for data.source imagefolder alone, got {self.source}"
            )
        if self.source in LOCAL_SOURCES and not (self.source_dir or self.prepared_dir):
            raise ValueError(
                f"data.source_dir must name the folder of the {self.source} files; "
                "data.prepared_dir alone will do once they are prepared"
            )


def prepared_path(config: DataConfig, image_size: int) -> str:
    """Where the prepared files of these settings lie: a whole path, or an address in S3."""
    if is_uri(config.prepared_dir):
        return config.prepared_dir
    name = config.source
    if config.source == "digits":
        name = f"digits-{image_size}"
    elif config.source in LOCAL_SOURCES:
        name = f"{config.source}-{Path(config.source_dir).resolve().name}"
    return str(Path(config.prepared_dir or Path("data") / name).absolute())


def prepared_settings(config: DataConfig, image_size: int) -> dict[str, str | int | float]:
    """The settings, by name, that decide what is in the prepared files."""
    settings: dict[str, str | int | float] = {
        f"data.{name}": getattr(config, name)
        for name in ("source", "validation_share", "split_seed", "max_side", "image_format")
    }
    if config.image_format == "jpeg":
        settings["data.jpeg_quality"] = config.jpeg_quality
    if config.source == "digits":
        settings["model.image_size"] = image_size
    if config.source in LOCAL_SOURCES and config.source_dir:
        settings["data.source_dir"] = (
            config.source_dir
            if is_uri(config.source_dir)
            else str(Path(config.source_dir).resolve())
        )
    if config.class_index:
        settings["data.class_index"] = config.class_index
    return settings
