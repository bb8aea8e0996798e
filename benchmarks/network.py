"""Compare our network with the plain form, interleaved in one process.

    python -m benchmarks.network                         # everything, one thread; about 20 minutes
    python -m benchmarks.network --networks cifar --works train --contenders "ours float32"

The contenders of a line run interleaved, round by round, so that a slower or faster moment of the
machine affects all of them; the table shows medians, the spread, and the ratio to the plain form in
float32. Peak memory is the memory that one step adds to a new process.
"""

import argparse
import contextlib
import ctypes
import gc
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain import PlainRANet
from ranet import PRESETS, RANet

NETWORKS = {"cifar": "cifar_script", "imagenet": "imagenet_readme", "imagenet64": "imagenet_paper"}
BATCHES = {("cifar", "train"): [64], ("imagenet", "train"): [8], ("imagenet64", "train"): [8]}
BATCHES |= {("cifar", "evaluate"): [1, 64], ("imagenet", "evaluate"): [1, 8]}
BATCHES |= {("imagenet64", "evaluate"): [8]}
CONTENDERS = ["plain float32", "plain bfloat16", "ours float32", "ours bfloat16"]


@dataclass(frozen=True)
class Case:
    """Workload: a network, an operation and a batch size."""

    network: str
    work: str
    batch: int


def make_step(case: Case, contender: str) -> Callable[[], None]:
    """Build one contender's step for a case."""
    torch.manual_seed(0)
    form, _, precision = contender.partition(" ")
    config = PRESETS[NETWORKS[case.network]]
    images = torch.randn(case.batch, 3, config.image_size, config.image_size)
    labels = torch.randint(config.num_classes, (case.batch,))
    is_half = precision == "bfloat16"
    model: nn.Module = PlainRANet(config) if form == "plain" else RANet(config)
    if form == "ours":  # as `fit` lays them out
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if case.work == "train":
        return lambda: train_step(model, images, labels, is_half)
    model.eval()
    if isinstance(model, RANet):
        model = model.optimized(torch.bfloat16 if is_half else torch.float32)
        is_half = False  # its weights are; nothing is left to cast
    return lambda: evaluation_step(model, images, is_half)


def train_step(model: nn.Module, images: Tensor, labels: Tensor, is_half: bool) -> None:
    """Forward and backward pass over all exits."""
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        logits = model(images)
    loss = torch.stack([F.cross_entropy(exit_.float(), labels) for exit_ in logits]).sum()
    loss.backward()
    model.zero_grad(set_to_none=True)


def evaluation_step(model: nn.Module, images: Tensor, is_half: bool) -> None:
    """All exits, without gradients."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        model(images)


def time_in_turn(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _measure_memory(case: Case, contender: str, threads: int, answer: object) -> None:
    torch.set_num_threads(threads)
    step = make_step(case, contender)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what making the model left over is not for the step
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak to the present value
    before = _peak_kilobytes()
    step()
    answer.put((_peak_kilobytes() - before) / 1024)  # type: ignore[attr-defined]


def _peak_kilobytes() -> int:
    """Peak memory of this process, without that of its parent."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def peak_megabytes(case: Case, contender: str, threads: int) -> float:
    """Memory of a first step beyond model and images."""
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=_measure_memory, args=(case, contender, threads, answer))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"measuring the memory of {case} {contender} failed")
    return answer.get()


def cases(networks: list[str], works: list[str]) -> Iterator[Case]:
    """All lines of the table."""
    for network in networks:
        for work in works:
            for batch in BATCHES[network, work]:
                yield Case(network, work, batch)


def describe_machine() -> str:
    """Processor, its bf16 instructions, versions."""
    cpu = platform.processor() or platform.machine()
    flags = ""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        facts = {name.strip(): value.strip() for name, value in facts.items()}
        cpu = f"{facts.get('model name', cpu)} family {facts.get('cpu family')}"
        flags = facts.get("flags", "")
    half = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags] or ["none"]
    return f"{cpu}; bf16 instructions: {', '.join(half)}; torch {torch.__version__}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--works", nargs="+", choices=["train", "evaluate"])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out")
    arguments = parser.parse_args()
    contenders = ["plain float32", *(c for c in arguments.contenders if c != "plain float32")]
    print(describe_machine())
    print("| network | work | batch | threads | form | ms (min..max) | ratio | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for case in cases(arguments.networks, arguments.works or ["train", "evaluate"]):
            rounds = arguments.rounds * (10 if case.batch == 1 else 1)
            seconds = time_in_turn({c: make_step(case, c) for c in contenders}, rounds)
            for name in contenders:
                ratios = [
                    a / b for a, b in zip(seconds["plain float32"], seconds[name], strict=True)
                ]
                ms = [1000 * s for s in seconds[name]]
                memory = "" if arguments.no_memory else f"{peak_megabytes(case, name, threads):.0f}"
                print(
                    f"| {case.network} | {case.work} | {case.batch} | {threads} | {name} | "
                    f"{statistics.median(ms):.1f} ({min(ms):.1f}..{max(ms):.1f}) | "
                    f"x{statistics.median(ratios):.2f} | {memory} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
