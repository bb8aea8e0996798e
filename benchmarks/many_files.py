"""Measure time and memory of the preparation of many small files.

    python -m benchmarks.many_files [--images 100000] [--classes 1000] [--folder FOLDER]

Writes JPEGs of 64x48 pixels in class folders, prepares them on all CPUs of this machine, and starts
again, which compares the files with their source. Memory is the resident memory of the driver, and
the sum over the processes that encode, sampled ten times a second. The time includes Ray's start.
"""

import argparse
import io
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

import numpy as np
import psutil
from PIL import Image

from benchmarks.network import describe_machine
from cluster.config import ClusterConfig
from cluster.execution.parallel_map import parallel_map
from pipelines.data.config import AugmentConfig, DataConfig
from pipelines.data.preparation.prepare import prepare

TEMPLATES = 64
SAMPLE_SECONDS = 0.1

_Result = TypeVar("_Result")


def main() -> None:
    """Write the files, prepare them twice, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="default: a temporary folder")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        write_tree(folder / "tree", arguments.images, arguments.classes)
        config = DataConfig(
            source="imagefolder",
            source_dir=str(folder / "tree"),
            prepared_dir=str(folder / "prepared"),
            image_format="jpeg",
            augment=AugmentConfig(crop="random_resized"),
        )
        print(f"{describe_machine()}; {arguments.images:,} images, {arguments.classes:,} classes")
        mapped = partial(parallel_map, ClusterConfig())
        # The cluster has default settings of a run with more workers than this machine has CPUs.
        for title in ("prepare", "start again"):
            run = partial(prepare, config, 32, parallel_map=mapped)
            seconds, driver, tasks, processes = watched(run)
            print(
                f"{title:12} {seconds:7.1f} s  {arguments.images / seconds:8.0f} images/s  "
                f"driver {driver / 1e6:6.0f} MB  tasks {tasks / 1e6:6.0f} MB in {processes}"
            )
    finally:
        shutil.rmtree(folder)


def write_tree(root: Path, num_images: int, num_classes: int) -> None:
    """Write different JPEGs, a tenth of them in val."""
    logging.getLogger("PIL").setLevel(logging.WARNING)
    generator = np.random.default_rng(0)
    templates = []
    for _ in range(TEMPLATES):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((64, 48), Image.Resampling.BICUBIC).save(file, "JPEG", quality=80)
        templates.append(file.getvalue())
    for number in range(num_images):
        label = number % num_classes
        part = "val" if number // num_classes % 10 == 0 else "train"
        folder = root / part / f"class{label:04}"
        folder.mkdir(parents=True, exist_ok=True)
        # A JPEG may be followed by anything.
        content = templates[number % TEMPLATES] + number.to_bytes(8, "big")
        (folder / f"{number:07}.jpg").write_bytes(content)


def watched(call: Callable[[], _Result]) -> tuple[float, int, int, int]:
    """Return seconds, peak memory of driver and tasks, number of tasks."""
    peak = [0, 0, 0]
    ended = Event()

    def sample() -> None:
        this = psutil.Process()
        while not ended.wait(SAMPLE_SECONDS):
            tasks = [size for size in map(task_memory, this.children(recursive=True)) if size]
            for index, value in enumerate((this.memory_info().rss, sum(tasks), len(tasks))):
                peak[index] = max(peak[index], value)

    thread = Thread(target=sample)
    thread.start()
    began = time.perf_counter()
    try:
        call()
    finally:
        seconds = time.perf_counter() - began
        ended.set()
        thread.join()
    driver, tasks, processes = peak
    return seconds, driver, tasks, processes


def task_memory(process: psutil.Process) -> int:
    """Return the resident memory of a task; 0 for another process."""
    try:
        is_task = " ".join(process.cmdline()).startswith("ray::write_shard")
        return process.memory_info().rss if is_task else 0
    except psutil.Error:  # the process has ended
        return 0


if __name__ == "__main__":
    main()
