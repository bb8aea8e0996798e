"""Compare the stall by checkpoints written at once and in a thread.

    python -m benchmarks.checkpoints --folder outputs/stall --rounds 5

The state is weights, momentum, EMA and best weights of one network. At once: copy to new memory,
`torch.save`, SHA-256 and a local file, while training waits. In a thread: training waits for the
copy into kept memory only, as in a run. The two forms alternate; before each measurement the last
write has ended.
"""

import argparse
import platform
import shutil
import statistics
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow.fs
import torch
from ray.train import Checkpoint

from cluster.storage.checkpoints import SNAPSHOT, store_checkpoint
from ranet.protocols import Snapshot
from ranet.training.host_copies import HostCopies

TENSORS = 1500
"""Tensors of a network, as many as ImageNet's has."""


def make_snapshot(num_bytes: int) -> Snapshot:
    """Make a state of this size with random values."""
    size = num_bytes // 4 // 4 // TENSORS

    def network() -> dict[str, torch.Tensor]:
        return {f"weight{k}": torch.randn(size) for k in range(TENSORS)}

    momentum = {name: {"momentum_buffer": value} for name, value in network().items()}
    best = {"epoch": 1, "value": 1.0, "model": network()}
    return {"model": network(), "optimizer": momentum, "ema": network(), "best": best}


def copied(value: Any) -> Any:
    """Copy nested dicts of tensors to new memory."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def write(snapshot: Snapshot, folder: Path) -> None:
    """Write a checkpoint to a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint = Checkpoint(str(folder), pyarrow.fs.LocalFileSystem())
    store_checkpoint(checkpoint, {SNAPSHOT: snapshot})


def measure(snapshot: Snapshot, folder: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Measure the seconds of both stalls in alternation."""
    copies = HostCopies()
    copies.copy(snapshot)  # memory is allocated at the first checkpoint of a run
    at_once, in_thread = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        write({**copied(snapshot)}, folder)
        at_once.append(time.perf_counter() - start)
        start = time.perf_counter()
        thread = Thread(target=write, args=(copies.copy(snapshot), folder))
        thread.start()
        in_thread.append(time.perf_counter() - start)
        thread.join()
    return at_once, in_thread


def main() -> None:
    """Measure states of several sizes and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="folder for the checkpoints")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[600, 2400])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
    print("| state, MB | at once, s | in a thread, s | share |\n|---|---|---|---|")
    for megabytes in arguments.megabytes:
        snapshot = make_snapshot(megabytes * 10**6)
        times = measure(snapshot, arguments.folder / "checkpoint", arguments.rounds)
        before, after = map(statistics.median, times)
        print(f"| {megabytes} | {before:.2f} | {after:.3f} | {after / before:.1%} |", flush=True)
    shutil.rmtree(arguments.folder / "checkpoint")


if __name__ == "__main__":
    main()
