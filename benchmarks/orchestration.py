"""Compare pipelines/train.py with a plain DDP loop, and its scaling.

    python -m benchmarks.orchestration --out FILE                     # about 12 minutes on 2 cores
    python -m benchmarks.orchestration --out FILE --workers 2 --rounds 1
    python -m benchmarks.orchestration --out FILE --rounds 0          # the table of FILE again

`ours` trains by pipelines/train.py (Ray Train, FFCV, MLflow, a checkpoint an epoch), `bare` by
torchrun (benchmarks/bare_ddp.py: the same network, images, batches, threads and environment). In
every round all of them take turns. Counted is the time from the end of the second epoch to the end
of the last: steps, validation, and what an epoch's end costs; the steps alone are given too, since
an end weighs more the shorter the epoch (these have 19 steps of 64 images). CPU seconds are those
of all processes that a way starts. Each run adds a line to FILE, and the table is of all its lines.
Further arguments are settings of the run, such as --train.epochs=8; variables named RAY_... reach
ours.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Metric

from benchmarks.network import describe_machine
from cluster.local.processes import marked_processes, ray_folder
from cluster.tracking.client import EXPERIMENT
from pipelines.data.preparation.prepare import prepare
from pipelines.run import Run, read_run

PROJECT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 300.0
WARM_EPOCHS = 2
"""Epochs after which everything has been imported, connected and done once."""
EPOCHS = 6
"""Epochs of a run unless a setting says otherwise."""
STAGES = {
    "Ray's start, its controller's start and imports": "",
    "resources": r"Attempting to start training worker group",
    "workers' processes": r"worker actors created in",
    "workers' imports": r"Train context initialized on workers",
    "process group, function sent": r"Train function launched on workers",
}
"""What ends when Ray's controller first logs a line with these words; the first, with its first."""

PARTS = {
    "RayTrainWorker": "workers",
    "TrainController": "controller, with our MLflow metrics",
    "gcs_server": "Ray's gcs_server",
    "raylet": "Ray's raylet",
    "log_monitor": "Ray's log_monitor",
    "dashboard": "Ray's dashboard",
}
"""What a process is by its name."""


def main() -> None:
    """Measure in turns, and print what was measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="configs/digits.yaml")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ways", nargs="+", choices=("ours", "bare"), default=["ours", "bare"])
    arguments, settings = parser.parse_known_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    config = str(Path(arguments.config).absolute())
    for _ in range(arguments.rounds):
        for workers in arguments.workers:
            for way in arguments.ways:
                found = json.dumps(measure(way, workers, config, settings))
                with arguments.out.open("a") as file:
                    file.write(found + "\n")
                print(found, flush=True)
    print_tables([json.loads(line) for line in arguments.out.read_text().splitlines()])


def measure(way: str, workers: int, config: str, settings: Sequence[str]) -> dict[str, Any]:
    """Train once, in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [
            f"--train.epochs={EPOCHS}", f"--cluster.num_workers={workers}",
            f"--data.prepared_dir={folder}/images", *settings,
        ]  # fmt: skip
        run = read_run(["--config", config, *settings])
        if run.train.epochs < WARM_EPOCHS + 2:
            raise ValueError(
                f"train.epochs must be {WARM_EPOCHS + 2} or more, got {run.train.epochs}"
            )
        info = prepare(run.data, run.model.image_size)
        steps = info.num_samples["train"] // run.train.batch_size
        return {
            "what": way,
            "workers": workers,
            "epochs": run.train.epochs - WARM_EPOCHS,
            "images": steps * run.train.batch_size * (run.train.epochs - WARM_EPOCHS),
            **(ours if way == "ours" else bare)(folder, config, settings, run),
        }


def ours(folder: Path, config: str, settings: Sequence[str], run: Run) -> dict[str, Any]:
    """Train by pipelines/train.py."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    database = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    database.search_experiments()  # creates the tables, which takes seconds
    log = folder / "log.txt"
    with ray_folder() as ray, log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, PROJECT / "pipelines" / "train.py", "--config", config, *settings],
            cwd=folder, env={**environment, "RAY_TMPDIR": ray},
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        submitted = psutil.Process(process.pid).create_time()

        def parts() -> dict[str, float]:
            processes = marked_processes("RAY_TMPDIR", ray)
            return cpu_seconds(processes, lambda each: _part(each, process.pid))

        def epochs() -> int:
            return log.read_text().count("validation top-1")

        shares = watch(epochs, parts, run.train.epochs, process)
        experiment = database.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        [record] = database.search_runs([experiment.experiment_id])

        def history(metric: str) -> list[Metric]:
            found = database.get_metric_history(record.info.run_id, metric)
            return sorted(found, key=lambda entry: entry.step)

        # What follows, scoring and registering, is not measured.
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(history("epoch")) < run.train.epochs:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        rates = [entry.value for entry in history("train/images_per_second")]
        ends = [entry.timestamp / 1000 for entry in history("epoch")]
        images = prepare(run.data, run.model.image_size).num_samples["train"]
        in_steps = [images // run.train.batch_size * run.train.batch_size / rate for rate in rates]
        others = [
            end - before - seconds
            for before, end, seconds in zip(ends, ends[1:], in_steps[1:], strict=False)
        ]
        first_step = ends[0] - in_steps[0] - statistics.median(others)
        stages = start_of(Path(ray), submitted, record.info.start_time / 1000, first_step)
    return {
        "seconds": ends[-1] - ends[WARM_EPOCHS - 1],
        "cpu_shares": shares,
        "in_steps": sum(in_steps[WARM_EPOCHS:]),
        "stages": stages,
    }


def start_of(ray: Path, submitted: float, opened: float, first_step: float) -> dict[str, float]:
    """Seconds of every stage from the command to the first step.

    Args:
        ray: folder of Ray, whose log says when its controller did what.
        submitted: when the command began.
        opened: when its run in MLflow was made.
        first_step: when the first epoch ended, less its steps and what the ends of the others took.
    """
    [session] = ray.glob("ray/session_2*")
    connected = datetime.strptime(
        "_".join(session.name.split("_")[1:4]), "%Y-%m-%d_%H-%M-%S_%f"
    ).timestamp()
    [log] = session.glob("logs/train/ray-train-sys-controller-*.log")
    told = [json.loads(line) for line in log.read_text().splitlines()]
    marks = {"imports, images found": opened, "MLflow run opened and claimed": connected}
    for stage, words in STAGES.items():
        marks[stage] = next(
            line["timestamp_ns"] / 1e9 for line in told if re.search(words, line["message"])
        )
    marks["network, loaders"] = first_step
    begun = [submitted, *marks.values()]
    return {stage: end - begin for (stage, end), begin in zip(marks.items(), begun, strict=False)}


def bare(folder: Path, config: str, settings: Sequence[str], run: Run) -> dict[str, Any]:
    """Train by torchrun."""
    log = folder / "log.txt"
    # What cluster.execution.node.environment.worker_environment gives to our workers.
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

    def told() -> list[dict[str, Any]]:
        lines = log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith('{"epoch"')]

    def parts() -> dict[str, float]:
        torchrun = psutil.Process(process.pid)
        return cpu_seconds(
            [torchrun, *torchrun.children(recursive=True)],
            lambda each: "torchrun" if each == torchrun else "workers",
        )

    try:
        shares = watch(lambda: len(told()), parts, run.train.epochs, process)
        assert process.wait(TIMEOUT_SECONDS) == 0, log.read_text()
    finally:
        process.terminate()
    found = told()
    return {
        "seconds": found[-1]["time"] - found[WARM_EPOCHS - 1]["time"],
        "cpu_shares": shares,
        "in_steps": sum(each["in_steps"] for each in found[WARM_EPOCHS:]),
    }


def watch(
    epochs: Callable[[], int],
    parts: Callable[[], dict[str, float]],
    total: int,
    process: subprocess.Popen[bytes],
) -> dict[str, float]:
    """CPU seconds per second of each part during the counted epochs."""
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
    """CPU seconds of the running processes by part."""
    taken: defaultdict[str, float] = defaultdict(float)
    for process in processes:
        try:
            times = process.cpu_times()
            taken[part(process)] += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return taken


def _part(process: psutil.Process, driver: int) -> str:
    if process.pid == driver:
        return "driver"
    words = process.cmdline() or [process.name()]
    is_python = Path(words[0]).name.startswith("python")
    script = next((word for word in words if is_python and word.endswith(".py")), words[0])
    name = Path(script).name
    return next((part for mark, part in PARTS.items() if mark in name), "Ray's other processes")


def print_tables(lines: Sequence[dict[str, Any]]) -> None:
    """Print medians with least and most."""
    print(describe_machine())
    numbers = sorted({line["workers"] for line in lines})
    ways = {
        (way, workers): [
            line for line in lines if (line["what"], line["workers"]) == (way, workers)
        ]
        for workers in numbers
        for way in ("ours", "bare")
    }
    for (way, workers), found in ways.items():
        if not found:
            continue
        rates = [rate(line) for line in found]
        print(f"\n{way}, workers: {workers}, {len(found)} runs: images/s {spread(rates)}")
        costs = [cpu_milliseconds(line) for line in found]
        print(f"  CPU ms an image: {spread([sum(cost.values()) for cost in costs], 2)}")
        for part in sorted(set().union(*costs)):
            print(f"    {part}: {spread([cost.get(part, 0.0) for cost in costs], 2)}")
        print(f"  steps alone: images/s {spread([rate_of_steps(line) for line in found])}")
        print(f"  seconds at an epoch's end: {spread([end_of_epoch(line) for line in found], 2)}")
        if way == "bare":
            continue
        waits = [sum(line["stages"].values()) for line in found]
        print(f"  seconds from the command to the first step: {spread(waits)}")
        for stage in found[0]["stages"]:
            print(f"    {stage}: {spread([line['stages'][stage] for line in found])}")
    print()
    for workers in numbers:
        pairs = list(zip(ways["ours", workers], ways["bare", workers], strict=False))
        if pairs:
            for what, of in {"all": rate, "steps alone": rate_of_steps}.items():
                losses = [100 * (1 - of(ours) / of(bare)) for ours, bare in pairs]
                print(f"lost, {what}, workers: {workers}, {len(pairs)} rounds: {spread(losses)} %")
    for way in ("ours", "bare"):
        first, last = ways[way, numbers[0]], ways[way, numbers[-1]]
        ratios = [rate(many) / rate(few) for few, many in zip(first, last, strict=False)]
        if ratios and len(numbers) > 1:
            print(f"{way}, {numbers[-1]} workers over {numbers[0]}: {spread(ratios, 2)}")


def rate(line: dict[str, Any]) -> float:
    """Images a second of a run."""
    return line["images"] / line["seconds"]


def rate_of_steps(line: dict[str, Any]) -> float:
    """Images per second within the steps of a run."""
    return line["images"] / line["in_steps"]


def end_of_epoch(line: dict[str, Any]) -> float:
    """Seconds between the last step of an epoch and the next step."""
    return (line["seconds"] - line["in_steps"]) / line["epochs"]


def cpu_milliseconds(line: dict[str, Any]) -> dict[str, float]:
    """CPU time per image of each part."""
    return {part: 1000 * share / rate(line) for part, share in line["cpu_shares"].items()}


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median, least and most."""
    low, middle, high = (pick(values) for pick in (min, statistics.median, max))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
