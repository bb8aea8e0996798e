"""Compare our loaders with FFCV's and torchvision's on the same images.

    python -m benchmarks.loading --images FOLDER    # a folder of class folders of photographs
    python -m benchmarks.loading --images FOLDER --stored-sizes 0 --qualities 75 90 95
    python -m benchmarks.loading --cifar FOLDER     # a folder of *-train.parquet, *-test.parquet
    python -m benchmarks.loading --waiting FOLDER   # the same folder
    python -m benchmarks.loading                    # the built-in digits

Photographs are cropped by RandomResizedCrop to 224 pixels and flipped; small images are shifted by
up to 4 pixels and, except digits, flipped. Batches are uint8 unless the table says float32. Every
loader has a process of its own. The loaders run interleaved, round by round, so that a slow moment
of the machine affects all of them; the files are in the page cache. CPU time is that of the process
and its children. RMS change: difference of the evaluated pixels from those of the original images,
in steps of 1/255. --waiting trains configs/cifar10_quick.yaml on a few images and prints the share
of time spent waiting for data.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import torch
from ffcv.fields.decoders import (
    IntDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, Squeeze, ToTensor, ToTorchImage
from PIL import Image
from pyarrow import parquet
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from benchmarks.network import describe_machine
from pipelines.data.config import AugmentConfig, DataConfig, normalization
from pipelines.data.format.beton import Beton, open_beton, write_beton
from pipelines.data.loading.in_memory import MemoryBatches
from pipelines.data.loading.loader import Worker, open_batches
from pipelines.data.loading.sampling import EpochSampler
from pipelines.data.loading.streaming import StreamingBatches
from pipelines.data.preparation.prepare import prepare
from pipelines.data.sources.base import FileImages, Images
from pipelines.data.sources.factory import open_source
from pipelines.run import read_run
from ranet import RANet
from ranet.model.preprocessing import Normalize
from ranet.protocols import Batches, Metrics
from ranet.training.log_reporter import LogReporter
from ranet.training.loop import fit
from ranet.training.state import TrainState

CPU = torch.device("cpu")
PHOTO_SIZE = 224
PHOTO_BATCH = 64
SMALL_BATCH = 128
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZE = (v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD))
ROUND_SECONDS = 1.0
"""A round reads whole epochs until this time is over."""

ReadEpoch = Callable[[int], int]
"""Reads an epoch to its end and gives the number of its images."""


@dataclass(frozen=True)
class Contender:
    """One line of a table."""

    loader: str
    reads: str
    bytes_per_image: float
    open: Callable[[], ReadEpoch]
    """Called in the contender's own process."""
    change: float | None = None
    """See `rms_change`."""
    per_cpu_second: list[float] = field(default_factory=list)
    """Images, in each round."""
    per_second: list[float] = field(default_factory=list)
    """Images, in each round."""


def main() -> None:
    """Print the tables."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    print(f"{describe_machine()}; {arguments.threads} threads or processes for each loader\n")
    with tempfile.TemporaryDirectory(prefix="loading-") as name:
        folder = Path(name)
        if arguments.images:
            contenders = photo_contenders(arguments, folder)
            take_turns(contenders, arguments.rounds)
            print_table("Photographs", contenders)
        if arguments.cifar:
            config = DataConfig(source="parquet", source_dir=str(arguments.cifar))
            contenders = small_contenders(config, folder / "cifar.beton", arguments.threads)
            take_turns(contenders, arguments.rounds)
            print_table("CIFAR", contenders)
        if arguments.waiting:
            print_waiting(arguments.waiting, folder)
        if not (arguments.images or arguments.cifar or arguments.waiting):
            config = DataConfig(source="digits", augment=AugmentConfig(flip=False))
            contenders = small_contenders(config, folder / "digits.beton", arguments.threads)
            take_turns(contenders, arguments.rounds)
            print_table("Digits", contenders)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of class folders of photographs")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR's two parquet files")
    parser.add_argument("--waiting", type=Path, help="folder of CIFAR's two parquet files")
    parser.add_argument("--stored-sizes", type=int, nargs="+", default=[0, 320, 256])
    parser.add_argument("--qualities", type=int, nargs="+", default=[90])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def photo_contenders(arguments: argparse.Namespace, folder: Path) -> list[Contender]:
    """Time every loader on photographs of every stored size and quality."""
    root, threads = arguments.images, arguments.threads
    found = ImageFolder(root)
    paths = tuple(str(Path(path).relative_to(root)) for path, _ in found.samples)
    images = FileImages(str(root), paths, np.array(found.targets, np.int64))
    bytes_per_image = statistics.mean((root / path).stat().st_size for path in paths)
    contenders = folder_contenders("the files", root, bytes_per_image, threads)
    raw = DataConfig(
        source="imagefolder", source_dir=str(root), augment=AugmentConfig(crop="random_resized")
    )
    unchanged = write(folder / "raw-0.beton", images, raw)
    for stored_size in arguments.stored_sizes:
        title = f"{stored_size} px" if stored_size else "as they are"
        jpegs = [replace(raw, image_format="jpeg", jpeg_quality=q) for q in arguments.qualities]
        for config in (replace(each, max_side=stored_size) for each in [raw, *jpegs]):
            kind = f"JPEG {config.jpeg_quality}" if config.image_format == "jpeg" else "raw"
            name = (
                f"{config.jpeg_quality if config.image_format == 'jpeg' else 'raw'}-{stored_size}"
            )
            beton = write(folder / f"{name}.beton", images, config)
            bytes_per_image = float(beton.table[:, 1].mean())
            change = rms_change(beton, unchanged, config)
            ours = partial(open_ours, beton.path, config, PHOTO_SIZE, PHOTO_BATCH, threads)
            ffcvs = partial(open_ffcv, beton.path, config, PHOTO_SIZE, PHOTO_BATCH, threads)
            for loader, opened in (("ours", ours), ("FFCV's Loader", ffcvs)):
                contenders.append(
                    Contender(loader, f"{kind}, {title}", bytes_per_image, opened, change)
                )
            if config.image_format == "jpeg" and stored_size:
                unpack(beton, folder / name)
                contenders += folder_contenders(
                    f"{kind}, {title}", folder / name, bytes_per_image, threads
                )
    return contenders


def folder_contenders(
    reads: str, root: Path, bytes_per_image: float, threads: int
) -> list[Contender]:
    """The usual ways to read a folder of photographs."""
    return [
        Contender(name, reads, bytes_per_image, partial(open_folder, root, name, threads))
        for name in FOLDER_LOADERS
    ]


def small_contenders(config: DataConfig, path: Path, threads: int) -> list[Contender]:
    """Every loader on small images of one size, kept as pixels."""
    beton = write(path, open_source(config, 32).train, config)
    bytes_per_image = float(beton.table[:, 1].mean())
    size = int(beton.sizes[0, 0])
    openers: dict[str, Callable[[], ReadEpoch]] = {
        "ours, from the file": partial(open_ours, path, config, size, SMALL_BATCH, threads),
        "ours, in memory": partial(
            open_ours, path, replace(config, loader="memory"), size, SMALL_BATCH, threads
        ),
        "FFCV's Loader": partial(open_ffcv, path, config, size, SMALL_BATCH, threads),
        "torchvision, PIL": partial(open_arrays, path, config, False, threads),
        "torchvision, PIL, to float32": partial(open_arrays, path, config, True, threads),
    }
    return [Contender(name, "raw", bytes_per_image, each) for name, each in openers.items()]


def write(path: Path, images: Images, config: DataConfig) -> Beton:
    """Open a file of images; write it if it is missing."""
    if not path.exists():
        write_beton(path, images, config)
    return open_beton(path)


def unpack(beton: Beton, root: Path) -> None:
    """Write the JPEG images of a file to class folders, unchanged."""
    for index, (row, label) in enumerate(zip(beton.table, beton.labels, strict=True)):
        path = root / f"{label:04}" / f"{index:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(beton.data[row[0] : row[0] + row[1]].tobytes())


def make_planner(
    beton: Beton, config: DataConfig, size: int, batch: int, train: bool
) -> EpochSampler:
    """Plan the epochs of a single worker."""
    return EpochSampler(
        config=config,
        is_training=train,
        sizes=beton.sizes,
        image_size=size,
        global_batch_size=batch,
        rank=0,
        num_workers=1,
        seed=0,
    )


def rms_change(beton: Beton, unchanged: Beton, config: DataConfig) -> float:
    """RMS change of the evaluated pixels against the original images.

    Root of the mean squared difference, in steps of 1/255.
    """
    readers = [
        StreamingBatches(each, make_planner(each, config, PHOTO_SIZE, PHOTO_BATCH, False), CPU)
        for each in (beton, unchanged)
    ]
    with readers[0].epoch(0) as some, readers[1].epoch(0) as others:
        squares = [
            (a.float() - b.float()).square().mean(dim=(1, 2, 3))
            for (a, _), (b, _) in zip(some, others, strict=True)
        ]
    return float(torch.cat(squares).mean().sqrt())


def open_ours(path: Path, config: DataConfig, size: int, batch: int, threads: int) -> ReadEpoch:
    """Open a file by the loader that `config` names."""
    torch.set_num_threads(threads)
    beton = open_beton(path)
    loader = MemoryBatches if config.loader == "memory" else StreamingBatches
    planner = make_planner(beton, config, size, batch, True)
    batches: Batches = loader(beton, planner, CPU, threads)

    def read_epoch(epoch: int) -> int:
        with batches.epoch(epoch) as reader:
            return sum(len(labels) for _, labels in reader)

    return read_epoch


def open_ffcv(path: Path, config: DataConfig, size: int, batch: int, threads: int) -> ReadEpoch:
    """Open a file by FFCV's own loader with its own augmentation."""
    if config.augment.crop == "random_resized":
        image = [RandomResizedCropRGBImageDecoder((size, size)), RandomHorizontalFlip()]
    else:
        flip = [RandomHorizontalFlip()] if config.augment.flip else []
        image = [SimpleRGBImageDecoder(), *flip, RandomTranslate(padding=4)]
    loader = Loader(
        str(path),
        batch_size=batch,
        num_workers=threads,
        order=OrderOption.RANDOM,
        seed=0,
        pipelines={
            "image": [*image, ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )
    return lambda epoch: sum(len(labels) for _, labels in loader)


def decode_to_tensor(path: str) -> Tensor:
    """Decode a file as torchvision does without PIL."""
    return decode_image(path, ImageReadMode.RGB)


CROP_AND_FLIP = (v2.RandomResizedCrop(PHOTO_SIZE), v2.RandomHorizontalFlip())
FOLDER_LOADERS: dict[str, Callable[[Path], Dataset]] = {
    "torchvision, PIL": lambda root: ImageFolder(
        root, v2.Compose([*CROP_AND_FLIP, v2.PILToTensor()])
    ),
    "torchvision, PIL, to float32": lambda root: ImageFolder(
        root, v2.Compose([*CROP_AND_FLIP, *NORMALIZE])
    ),
    "torchvision, decode_image": lambda root: ImageFolder(
        root, v2.Compose(CROP_AND_FLIP), loader=decode_to_tensor
    ),
}


def open_folder(root: Path, name: str, threads: int) -> ReadEpoch:
    """Open a folder of photographs by torchvision."""
    return open_dataset(FOLDER_LOADERS[name](root), PHOTO_BATCH, threads)


class ArrayDataset(Dataset):
    """Pixels in memory, one PIL image each, as torchvision's CIFAR10."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int], transform: v2.Transform) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def open_arrays(path: Path, config: DataConfig, to_float: bool, threads: int) -> ReadEpoch:
    """Take the pixels out of a file, and read them by torchvision."""
    beton = open_beton(path)
    shape = (*beton.sizes[0], 3)
    images = [beton.data[start : start + size].reshape(shape) for start, size in beton.table[:, :2]]
    transform = v2.Compose(
        [
            v2.RandomCrop(int(shape[0]), padding=4),
            *([v2.RandomHorizontalFlip()] if config.augment.flip else []),
            *(NORMALIZE if to_float else (v2.PILToTensor(),)),
        ]
    )
    dataset = ArrayDataset(np.stack(images), beton.labels.tolist(), transform)
    return open_dataset(dataset, SMALL_BATCH, threads)


def open_dataset(dataset: Dataset, batch: int, processes: int) -> ReadEpoch:
    """Read a data set by processes that live on over the epochs."""
    loader = DataLoader(
        dataset,
        batch,
        shuffle=True,
        num_workers=processes,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="fork",  # as from any Python 3.11 or 3.12 script
    )
    return lambda epoch: sum(len(labels) for _, labels in loader)


def cpu_seconds() -> float:
    """CPU time of this process and of those it started."""
    started = psutil.Process().children(recursive=True)
    times = [process.cpu_times() for process in started]
    return time.process_time() + sum(each.user + each.system for each in times)


def serve(open_loader: Callable[[], ReadEpoch], connection: Connection) -> None:
    """Read one round, and tell images, seconds and CPU seconds, whenever asked."""
    read_epoch = open_loader()
    epoch = 0
    while connection.recv():
        images, started, cpu_started = 0, time.perf_counter(), cpu_seconds()
        while time.perf_counter() - started < ROUND_SECONDS:
            images += read_epoch(epoch)
            epoch += 1
        connection.send((images, time.perf_counter() - started, cpu_seconds() - cpu_started))


def take_turns(contenders: list[Contender], rounds: int) -> None:
    """Time the contenders, interleaved, after a warm-up round."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ffcv.loader", "torchvision", "benchmarks.network"])
    with ExitStack() as stack:
        connections = []
        for contender in contenders:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(contender.open, theirs))
            process.start()
            theirs.close()  # so that reading from a dead process fails
            stack.callback(process.join)
            connections.append(stack.enter_context(ours))
        for connection in connections:
            connection.send(True)
        for connection in connections:
            connection.recv()
        for _ in range(rounds):
            for contender, connection in zip(contenders, connections, strict=True):
                connection.send(True)
                images, seconds, cpu = connection.recv()
                contender.per_second.append(images / seconds)
                contender.per_cpu_second.append(images / cpu)
        for connection in connections:
            connection.send(False)


def print_table(title: str, contenders: list[Contender]) -> None:
    """Print medians and the spread."""
    print(f"### {title}: {len(contenders[0].per_second)} rounds\n")
    print("| loader | reads | KB an image | images/CPU-s (min..max) | images/s | RMS change |")
    print("|---|---|---|---|---|---|")
    for each in contenders:
        rates = each.per_cpu_second
        change = "" if each.change is None else f"{each.change:.1f}"
        print(
            f"| {each.loader} | {each.reads} | {each.bytes_per_image / 1000:.1f} | "
            f"{statistics.median(rates):,.0f} ({min(rates):,.0f}..{max(rates):,.0f}) | "
            f"{statistics.median(each.per_second):,.0f} | {change} |"
        )
    print(flush=True)


def print_waiting(root: Path, folder: Path) -> None:
    """Train on every fortieth image, and print the waiting share."""
    part = folder / "part"
    part.mkdir()
    for split in ("train", "test"):
        (path,) = root.glob(f"*-{split}.parquet")
        table = parquet.read_table(path)
        rows = np.arange(0, len(table), 40)  # the images may be sorted by class
        parquet.write_table(table.take(rows), part / f"cifar-{split}.parquet")
    print("### Training: share of the time that it waits for data\n")
    print("| loader | threads that compute | images/s | first epoch | later epochs |")
    print("|---|---|---|---|---|")
    for loader, threads in (("ffcv", 1), ("ffcv", 2), ("memory", 1)):
        history = train_quickly(part, loader, threads)
        pace = statistics.median(metrics["train/images_per_second"] for metrics in history)
        first, *later = (f"{100 * metrics['train/data_wait']:.2f} %" for metrics in history)
        line = f"| {loader} | {threads} | {pace:,.0f} | {first} | {', '.join(later)} |"
        print(line, flush=True)


def train_quickly(root: Path, loader: str, threads: int) -> list[Metrics]:
    """Train configs/cifar10_quick.yaml on other images, and give the metrics of its epochs."""
    run = read_run(
        [
            f"--config={Path(__file__).parents[1] / 'configs' / 'cifar10_quick.yaml'}",
            f"--data.source_dir={root}",
            f"--data.prepared_dir={root / 'prepared'}",
            f"--data.loader={loader}",
        ]
    )
    prepare(run.data, run.model.image_size)
    opened = partial(
        open_batches,
        run.data,
        image_size=run.model.image_size,
        batch_size=run.train.batch_size,
        worker=Worker(seed=run.train.seed, device=CPU),
    )
    torch.set_num_threads(threads)
    normalize = Normalize(*normalization(run.data))
    training = TrainState(run.train, RANet(run.model), normalize)
    snapshot = fit(training, opened("train"), opened("val"), LogReporter())
    return snapshot["history"]


if __name__ == "__main__":
    main()
