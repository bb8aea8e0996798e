"""Our whole path against a bare DDP loop.

    python -m benchmarks.orchestration ours --config configs/digits.yaml --workers 2 --out FILE
    python -m benchmarks.orchestration bare --config configs/digits.yaml --workers 2 --out FILE
    python -m benchmarks.orchestration table --out FILE

`ours` trains by pipelines/train.py (Ray Train, FFCV, MLflow, a checkpoint an epoch), `bare` by
torchrun (benchmarks/bare_ddp.py: the same network, images, batches, threads and environment); to be
called in turns. Counted is the time from the end of the second epoch to the end of the last: steps,
validation, and what an epoch's end costs. CPU seconds are those of all processes that a way starts.
Each call adds a line to FILE.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from mlflow.entities import Metric

from benchmarks.network import describe_machine
from pipelines.data import prepare
from pipelines.run import Run, read_run
from tests.e2e.training import PROJECT, client, runs, training

TIMEOUT_SECONDS = 300.0
WARM_EPOCHS = 2
"""Epochs after which everything has been imported, connected and done once."""


def main() -> None:
    """Measure once, or print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("ours", "bare", "table"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="configs/digits.yaml")
    parser.add_argument("--workers", type=int, default=2)
    arguments, settings = parser.parse_known_args()
    if arguments.what == "table":
        lines = arguments.out.read_text().splitlines()
        print_tables([json.loads(line) for line in lines])
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    config = str(Path(arguments.config).absolute())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [
            f"--cluster.num_workers={arguments.workers}", f"--data.folder={folder}/images",
            *settings,
        ]  # fmt: skip
        run = read_run(["--config", config, *settings])
        info = prepare(run.data, run.model.image_size)
        steps = info.num_samples["train"] // run.train.batch_size
        found = {
            "what": arguments.what,
            "workers": arguments.workers,
            "images": steps * run.train.batch_size * (run.train.epochs - WARM_EPOCHS),
            **(ours if arguments.what == "ours" else bare)(folder, config, settings, run),
        }
    with arguments.out.open("a") as file:
        file.write(json.dumps(found) + "\n")
    print(json.dumps(found))


def ours(folder: Path, config: str, settings: Sequence[str], run: Run) -> dict[str, Any]:
    """Train by pipelines/train.py."""
    with training(folder, *settings, config=config) as process:

        def parts() -> dict[str, float]:
            return cpu_seconds(process.family(), lambda each: _part(each, process.process.pid))

        def epochs() -> int:
            return process.output().count("validation top-1")

        shares = watch(epochs, parts, run.train.epochs, process.process)
        database = client(folder)
        [record] = runs(database)

        def history(metric: str) -> list[Metric]:
            return database.get_metric_history(record.info.run_id, metric)

        # What follows, scoring and registering, is not measured.
        process.wait_until(lambda: len(history("epoch")) == run.train.epochs)
    steps = history("train/images_per_second")
    ends = sorted(entry.timestamp / 1000 for entry in history("epoch"))
    return {
        "seconds": ends[-1] - ends[WARM_EPOCHS - 1],
        "cpu_shares": shares,
        "steps_alone": statistics.mean(entry.value for entry in steps if entry.step > WARM_EPOCHS),
    }


def bare(folder: Path, config: str, settings: Sequence[str], run: Run) -> dict[str, Any]:
    """Train by torchrun."""
    log = folder / "log.txt"
    # What cluster.launch.worker_environment gives to our workers.
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(run.cluster.cpus_per_worker),
        "THP_MEM_ALLOC_ENABLE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone",
             f"--nproc-per-node={run.cluster.max_workers}", "--module", "benchmarks.bare_ddp",
             "--config", config, *settings],
            cwd=PROJECT, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def ends() -> list[float]:
        lines = log.read_text().splitlines()
        return [json.loads(line)["time"] for line in lines if line.startswith('{"epoch"')]

    def parts() -> dict[str, float]:
        torchrun = psutil.Process(process.pid)
        return cpu_seconds(
            [torchrun, *torchrun.children(recursive=True)],
            lambda each: "torchrun" if each == torchrun else "workers",
        )

    try:
        shares = watch(lambda: len(ends()), parts, run.train.epochs, process)
        assert process.wait(TIMEOUT_SECONDS) == 0, log.read_text()
    finally:
        process.terminate()
    found = ends()
    return {"seconds": found[-1] - found[WARM_EPOCHS - 1], "cpu_shares": shares}


def watch(
    epochs: Callable[[], int],
    parts: Callable[[], dict[str, float]],
    total: int,
    process: subprocess.Popen[bytes],
) -> dict[str, float]:
    """CPU seconds a second of each part, while the epochs counted run, except the last."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    looks = []
    for wanted in (WARM_EPOCHS, total - 1):
        while epochs() < wanted:
            assert process.poll() is None, "it ended too early"
            assert time.monotonic() < deadline, "it takes too long"
            time.sleep(0.2)
        looks.append((time.monotonic(), parts()))
    (began, before), (ended, after) = looks
    return {part: (after[part] - before.get(part, 0.0)) / (ended - began) for part in sorted(after)}


def cpu_seconds(
    processes: Sequence[psutil.Process], part: Callable[[psutil.Process], str]
) -> dict[str, float]:
    """CPU seconds that living processes have taken, by the part of the whole that they are."""
    taken: defaultdict[str, float] = defaultdict(float)
    for process in processes:
        try:
            times = process.cpu_times()
            taken[part(process)] += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return taken


def _part(process: psutil.Process, driver: int) -> str:
    command = " ".join(process.cmdline())
    if "RayTrainWorker" in command:
        return "workers"
    if "TrainController" in command:
        return "controller, with our MLflow metrics"
    return "driver" if process.pid == driver else "Ray's own"


def print_tables(lines: Sequence[dict[str, Any]]) -> None:
    """Print medians with least and most."""
    print(describe_machine())
    for workers in sorted({line["workers"] for line in lines}):
        own = [line for line in lines if line["workers"] == workers]
        ways = {way: [line for line in own if line["what"] == way] for way in ("ours", "bare")}
        for way, found in ways.items():
            if found:
                rates = [line["images"] / line["seconds"] for line in found]
                print(f"\n{way}, {workers} workers: images/s {spread(rates)}")
                for part in found[0]["cpu_shares"]:
                    cost = [
                        1000 * line["cpu_shares"].get(part, 0.0) * line["seconds"] / line["images"]
                        for line in found
                    ]
                    print(f"  CPU ms an image, {part}: {spread(cost, 2)}")
        if ways["ours"]:
            steps = [line["steps_alone"] for line in ways["ours"]]
            print(f"  steps of ours alone: images/s {spread(steps)}")
        pairs = list(zip(ways["ours"], ways["bare"], strict=False))
        if pairs:
            losses = [100 * (1 - bare["seconds"] / ours["seconds"]) for ours, bare in pairs]
            print(f"  lost, {len(pairs)} rounds: {spread(losses)} %")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median, least and most."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
