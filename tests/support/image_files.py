"""Image files and prepared data sets shared by tests."""

import io
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines.data.config import DataConfig, Split
from pipelines.data.format.metadata import DatasetInfo, SourceRecord
from pipelines.data.loading.loader import Worker, open_batches
from tests.support.paths import PROJECT

WORKER_FIELDS = {field.name for field in fields_of(Worker)}


def pixels(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Return a smooth random image (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray | Image.Image, form: str = "PNG") -> bytes:
    """Encode an image as a file."""
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, form)
    return file.getvalue()


def image_folder(root: Path, classes=("cat", "dog"), train=6, val=2, size=32) -> Path:
    """Write an ImageNet-like tree of PNG files."""
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                seed = 1000 * label + number + (500 if part == "val" else 0)
                (folder / f"{number:03}.png").write_bytes(encoded(pixels(seed, size, size)))
    return root


def photo_tree(root: Path, classes=("cat", "dog", "owl"), train=12, val=4) -> Path:
    """Write classes of JPEG photos of 64x48 pixels, as users have them."""
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                seed = 1000 * label + number + (500 if part == "val" else 0)
                image = encoded(pixels(seed, 48, 64), "JPEG")
                (root / part / name / f"{number:03}.jpg").write_bytes(image)
    return root


def photo_arguments(root: Path, *arguments: str) -> list[str]:
    """Return a command line that trains on `photo_tree`."""
    return [
        "--config", str(PROJECT / "configs" / "digits.yaml"), "--data.source=imagefolder",
        f"--data.source_dir={root}", f"--data.prepared_dir={root.with_name('prepared')}",
        "--data.augment.crop=random_resized", "--model.num_classes=3", "--train.batch_size=8",
        "--train.epochs=1", "--train.optim.warmup_epochs=0", "--cluster.num_workers=1",
        *arguments,
    ]  # fmt: skip


def folder_config(root: Path, **settings) -> DataConfig:
    """Return settings for `image_folder`'s tree, prepared in its parent folder."""
    settings = {
        "prepared_dir": str(root.with_name("prepared")),
        "validation_share": 0.34,
    } | settings
    return with_settings(DataConfig(source="imagefolder", source_dir=str(root)), **settings)


def batches_of(config: DataConfig, split: Split = "train", **arguments):
    """Open batches, by default of one worker on a CPU."""
    settings: dict[str, Any] = {
        "image_size": 32,
        "batch_size": 4,
    }
    worker = Worker(**{name: arguments.pop(name) for name in WORKER_FIELDS & arguments.keys()})
    return open_batches(config, split, worker=worker, **settings | arguments)


def read_epoch(batches, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Read all images and labels of an epoch, in order."""
    with batches.epoch(epoch) as iterator:
        pairs = [(images.clone(), labels) for images, labels in iterator]
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def with_settings(config: DataConfig, **settings) -> DataConfig:
    """Replace settings of a data config; crop and flip belong to `data.augment`."""
    augment = {name: settings.pop(name) for name in ("crop", "flip") if name in settings}
    return replace(config, augment=replace(config.augment, **augment), **settings)


def dataset_info(**fields) -> DatasetInfo:
    """Return a summary of images with some given fields."""
    source = SourceRecord(
        folder="", sha256="", stamps_sha256="", num_train=0, num_test=0, files_seen=0,
        files_skipped={},
    )  # fmt: skip
    unset: dict[str, Any] = {"folder": "", "class_names": (), "duplicates": {}, "source": source}
    unset |= dict.fromkeys(("mean", "std"), (0.5, 0.5, 0.5))
    by_split = [field.name for field in fields_of(DatasetInfo) if field.name not in unset]
    return DatasetInfo(**{**{name: {} for name in by_split}, **unset, **fields})


def one_after_the_other(function, items):
    for number, item in enumerate(items):
        yield number, function(item)


def stopped_after(count):
    def parallel_map(function, items):
        yield from one_after_the_other(function, items[:count])
        raise KeyboardInterrupt

    return parallel_map


def prepared_bytes(config: DataConfig) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(Path(config.prepared_dir).glob("*.beton*"))
    }
