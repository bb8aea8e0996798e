"""Compare preparation rates with one and two CPUs.

    python -m benchmarks.preparation --images FOLDER [--rounds 3] [--data.image_format=jpeg ...]

FOLDER holds train and val as ImageNet does. Times are from the first task to the last file;
Ray's start is left out.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from benchmarks.network import describe_machine
from cluster.config import ClusterConfig
from cluster.execution.parallel_map import parallel_map
from pipelines.data.format.beton import open_beton
from pipelines.data.preparation.prepare import prepare
from pipelines.run import read_run


def main() -> None:
    """Prepare again and again, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    arguments, settings = parser.parse_known_args()
    rates: dict[int, list[float]] = {1: [], 2: []}
    stored = 0.0
    for _ in range(arguments.rounds):
        for cpus in rates:
            rate, stored = measure(arguments.images, settings, cpus)
            rates[cpus].append(rate)
    print(f"{describe_machine()}; {' '.join(settings)}; {stored:.0f} bytes an image")
    for cpus, values in rates.items():
        print(
            f"{cpus} CPU: {statistics.median(values):6.0f} images/s "
            f"({min(values):.0f} to {max(values):.0f})"
        )
    print(f"ratio {statistics.median(rates[2]) / statistics.median(rates[1]):.2f}")


def measure(images: Path, settings: Sequence[str], cpus: int) -> tuple[float, float]:
    """Images a second with so many CPUs, and bytes that each takes."""
    with tempfile.TemporaryDirectory() as folder:
        run = read_run(
            ["--data.source=imagefolder", f"--data.source_dir={images}",
             f"--data.prepared_dir={folder}",
             "--data.augment.crop=random_resized", *settings]
        )  # fmt: skip
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=100 << 20,
            logging_level=logging.ERROR,
        )  # fmt: skip
        begun: list[float] = []

        def spread(
            function: Callable[[Any], Any], items: Sequence[Any]
        ) -> Generator[tuple[int, Any]]:
            # Workers that have imported what they need, as all but the first tasks find them.
            trials = [
                replace(item, place=f"{folder}/trial{number}.npz")
                for number, item in enumerate(items[:cpus])
            ]
            list(parallel_map(ClusterConfig(), function, trials))
            begun.append(time.perf_counter())
            yield from parallel_map(ClusterConfig(), function, items)

        info = prepare(run.data, run.model.image_size, parallel_map=spread)
        seconds = time.perf_counter() - begun[0]
        ray.shutdown()
        count = sum(info.num_samples.values())
        # Of the images alone: the last page of a small file is mostly empty.
        betons = [open_beton(path) for path in Path(folder).glob("*.beton")]
        size = sum(int(beton.table[:, 1].sum()) for beton in betons)
        return count / seconds, size / count


if __name__ == "__main__":
    main()
