"""Compare both settings of data.shuffle on a file larger than memory.

    python -m benchmarks.order --folder FOLDER [--images 150000] [--size 96] [--megabytes 2000]

Needs root: a control group holds the reading process and its share of the page cache to so many
megabytes. Each order starts with nothing of the file in memory and reads for so many seconds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.loading import CPU, make_planner
from benchmarks.network import describe_machine
from pipelines.data.config import AugmentConfig, DataConfig
from pipelines.data.format.beton import open_beton, write_beton
from pipelines.data.loading.sampling import training_order
from pipelines.data.loading.streaming import StreamingBatches
from pipelines.data.sources.images import DecodedImage

BATCH = 256
CLASSES = 1000
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Noise:
    """Images of noise, sorted by class as folders are."""

    num_images: int
    size: int

    @property
    def labels(self) -> np.ndarray:
        """Class of every image."""
        return np.arange(self.num_images) * CLASSES // self.num_images

    def name(self, index: int) -> str:
        """Name of an image."""
        return f"noise {index}"

    def file_size(self, index: int) -> int:
        """None of the images is a file."""
        return 0

    def stamp(self, index: int) -> str:
        """None of the images is a file."""
        return ""

    def content(self, index: int) -> bytes:
        """Pixels of one image."""
        return np.random.default_rng(index).bytes(self.size**2 * 3)

    def decode(self, index: int, content: bytes | np.ndarray) -> DecodedImage:
        """One image."""
        pixels = np.frombuffer(content, np.uint8).reshape(self.size, self.size, 3)
        return DecodedImage(pixels)


def main() -> None:
    """Read in turns, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--images", type=int, default=150_000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--megabytes", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", choices=["full", "blocks"], help="what a measured process does")
    arguments = parser.parse_args()
    path = arguments.folder / f"noise-{arguments.images}-{arguments.size}.beton"
    if arguments.read:
        print(json.dumps(read(path, arguments.read, arguments.seconds)))
        return
    if not path.exists():
        write_beton(path, Noise(arguments.images, arguments.size), DataConfig())
    print(describe_machine())
    print(f"{path.stat().st_size / 1e6:.0f} MB in {arguments.images} images, ", end="")
    print(f"{arguments.megabytes} MB of memory, {arguments.seconds:g} s, {arguments.rounds} rounds")
    found: dict[str, list[dict[str, float]]] = {"full": [], "blocks": []}
    for _ in range(arguments.rounds):
        for order, results in found.items():
            forget(path)
            with memory_of(arguments.megabytes << 20) as group:
                command = [sys.executable, "-m", "benchmarks.order", *sys.argv[1:], "--read", order]
                results.append(json.loads(in_group(command, group)))
    for order, results in found.items():
        print(order, end="")
        for what, unit in (("images_a_second", "images/s"), ("read_share", "x its bytes read")):
            values = [result[what] for result in results]
            middle = statistics.median(values)
            print(f"; {middle:.2f} ({min(values):.2f} to {max(values):.2f}) {unit}", end="")
        labels = Noise(arguments.images, arguments.size).labels
        print(f"; {classes_of_batches(labels, order):.0f} classes in a batch of {BATCH}")


def read(path: Path, order: str, seconds: float) -> dict[str, float]:
    """Read batches for some seconds and measure bytes from the disk."""
    beton = open_beton(path)
    config = DataConfig(augment=AugmentConfig(crop="none", flip=False), shuffle=order)  # pyright: ignore[reportArgumentType]
    size = int(beton.sizes[0, 0])
    batches = StreamingBatches(beton, make_planner(beton, config, size, BATCH, True), CPU)
    before, begun, done = _bytes_read(), time.perf_counter(), 0
    with batches.epoch(0) as reader:
        for images, _ in reader:
            done += len(images)
            if time.perf_counter() - begun > seconds:
                break
    elapsed = time.perf_counter() - begun
    read_bytes = _bytes_read() - before
    return {
        "images_a_second": done / elapsed,
        "read_share": read_bytes / (done * float(beton.table[:, 1].mean())),
    }


def classes_of_batches(labels: np.ndarray, order: str) -> float:
    """Mean number of classes per batch of an epoch."""
    places = training_order(order, len(labels), 0, 0)
    batches = labels[places[: len(labels) // BATCH * BATCH]].reshape(-1, BATCH)
    return float(np.mean([len(np.unique(batch)) for batch in batches]))


def forget(path: Path) -> None:
    """Have nothing of a file in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def memory_of(limit: int) -> Iterator[Path]:
    """A control group of so many bytes."""
    is_old = (CGROUPS / "memory").is_dir()
    group = (CGROUPS / "memory" if is_old else CGROUPS) / f"ranet-order-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if is_old else "memory.max")).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def in_group(command: list[str], group: Path) -> str:
    """Run a command in a control group and return its output."""
    entered = f'echo $$ > {group}/cgroup.procs; exec "$@"'
    done = subprocess.run(
        ["bash", "-c", entered, "bash", *command], capture_output=True, text=True, check=True
    )
    return done.stdout


def _bytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


if __name__ == "__main__":
    main()
