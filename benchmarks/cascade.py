"""Compare the time of the cascade with the full pass.

    python -m benchmarks.cascade                             # CIFAR and ImageNet shapes
    python -m benchmarks.cascade --networks digits --weights snapshot.pt   # a trained network
    python -m benchmarks.cascade --networks cifar --parts 8 16 32 64 128 256

Digits leave where the trained network's confidences send them. The other networks have random
weights and images. Either way the geometric rule sets the thresholds for a mean cost, on the
images that are timed. All contenders see the same images, in turn; shares are medians over the
rounds of (its time / time of the full pass in the same round). The full pass is that of the
inference form, in the parts in which it takes itself through a CPU. Saving kept, and what
follows it, is by the processor's time, which other work on the machine disturbs less.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.network import describe_machine
from benchmarks.plain import PlainRANet
from benchmarks.reference import random_network
from benchmarks.trained import TrainOutput
from ranet import (
    PRESETS,
    Cascade,
    FusedRANet,
    RANet,
    fit_thresholds,
    mult_adds,
    official_state_dict,
)

BATCHES = {"digits": [1, 16, 64, 256], "cifar": [1, 16, 64, 256], "imagenet": [1, 16, 64, 256]}
PRESET = {"cifar": "cifar_script", "imagenet": "imagenet_readme"}
SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Case:
    """A network in evaluation mode and the images it is timed on."""

    model: RANet
    images: Tensor


def trained_case(config: Path, snapshot: Path, num_images: int) -> Case:
    """Trained network of a run, with its first test images."""
    trained = TrainOutput.load(config, snapshot)
    images, _ = trained.images("test", num_images)
    return Case(trained.model, images)


@torch.inference_mode()
def full_pass(model: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """All exits."""
    model(images)


@torch.inference_mode()
def full_parts(model: FusedRANet, part_size: int, images: Tensor) -> None:
    """All exits, in parts of a size of our choice."""
    for part in images.split(part_size):
        for _ in model.predictions(part):
            pass


def run_parts(cascade: Cascade, part_size: int, images: Tensor) -> None:
    """Cascade in parts of a size of our choice."""
    for part in images.split(part_size):
        for _ in cascade.stream(part):
            pass


@dataclass(frozen=True)
class Seconds:
    """Times of one contender for all images, in each round."""

    wall: list[float]
    processor: list[float]
    """Of the one thread: the wall clock of a machine that has nothing else to do."""


def time_in_turn(
    contenders: dict[str, Callable[[Tensor], object]], images: Tensor, batch: int, rounds: int
) -> dict[str, Seconds]:
    """Time each contender on all images, after one round to warm up."""
    seconds = {name: Seconds([0.0] * rounds, [0.0] * rounds) for name in contenders}
    for number in range(-1, rounds):
        # In turns of a few images, so that a slow moment of the machine meets all.
        for group in images.split(max(batch, 32)):
            for name, classify in contenders.items():
                wall, processor = time.perf_counter(), time.thread_time()
                for part in group.split(batch):
                    classify(part)
                if number >= 0:
                    seconds[name].wall[number] += time.perf_counter() - wall
                    seconds[name].processor[number] += time.thread_time() - processor
    return seconds


def median_ratio(over: list[float], under: list[float]) -> float:
    """Median over the rounds."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def make_cascades(case: Case) -> dict[float, Cascade]:
    """Build a cascade for each fraction of the full pass's cost."""
    model = case.model.optimized()
    with torch.inference_mode():
        confidences = model(case.images).softmax(dim=2).amax(dim=2)
    right = torch.ones_like(confidences, dtype=torch.bool)  # the geometric rule never looks at it
    costs = mult_adds(case.model.config)
    return {
        share: Cascade(
            model,
            fit_thresholds(confidences, right, costs, share * costs[-1], rule="geometric"),
        )
        for share in SHARES
    }


def print_savings(
    name: str, case: Case, batches: list[int], rounds: int, *, with_plain: bool
) -> None:
    """Print one line for each batch size and mean cost."""
    cascades = make_cascades(case)
    plain = PlainRANet(case.model.config).eval()
    plain.load_state_dict(official_state_dict(case.model))
    full_cost = mult_adds(case.model.config)[-1]
    cost_shares = {
        share: cascade(case.images).mult_adds.double().mean().item() / full_cost
        for share, cascade in cascades.items()
    }
    for batch in batches:
        contenders: dict[str, Callable[[Tensor], object]] = {
            "full": partial(full_pass, cascades[SHARES[0]].model),
            **{str(share): cascade for share, cascade in cascades.items()},
        }
        if with_plain:
            contenders["plain"] = partial(full_pass, plain)
        seconds = time_in_turn(contenders, case.images, batch, rounds)
        full = seconds["full"]
        ms = 1000 * statistics.median(full.processor) / len(case.images)
        for share, cost_share in cost_shares.items():
            early = seconds[str(share)]
            wall_share = median_ratio(early.wall, full.wall)
            time_share = median_ratio(early.processor, full.processor)
            over_plain = (
                f"x{median_ratio(seconds['plain'].processor, early.processor):.1f}"
                if with_plain
                else ""
            )
            print(
                f"| {name} | {batch} | {100 * cost_share:.1f} % | {100 * wall_share:.1f} % | "
                f"{100 * time_share:.1f} % | {100 * (1 - time_share) / (1 - cost_share):.0f} % | "
                f"{ms * time_share:.2f} of {ms:.2f} | {over_plain} |",
                flush=True,
            )


def print_parts(name: str, case: Case, parts: list[int], rounds: int) -> None:
    """Print the time per image by batch size."""
    cascade = make_cascades(case)[0.5]
    contenders: dict[str, Callable[[Tensor], object]] = {}
    for size in parts:
        contenders[f"full {size}"] = partial(full_parts, cascade.model, size)
        contenders[f"cascade {size}"] = partial(run_parts, cascade, size)
    seconds = time_in_turn(contenders, case.images, len(case.images), rounds)
    ms = {key: 1000 * statistics.median(value.processor) for key, value in seconds.items()}
    for size in parts:
        full, early = (ms[f"{kind} {size}"] / len(case.images) for kind in ("full", "cascade"))
        print(f"| {name} | {size} | {full:.3f} | {early:.3f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=BATCHES, default=["cifar", "imagenet"])
    parser.add_argument("--config", type=Path, default=Path("configs/digits.yaml"))
    parser.add_argument("--weights", type=Path, help="snapshot.pt of the digits' network")
    parser.add_argument("--batches", type=int, nargs="+", help="images in a call")
    parser.add_argument("--images", type=int, help="images to time (default: the largest batch)")
    parser.add_argument("--parts", type=int, nargs="+", help="compare these part sizes instead")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-plain", action="store_true", help="leave the plain form out")
    arguments = parser.parse_args()
    if "digits" in arguments.networks and arguments.weights is None:
        parser.error("--networks digits needs --weights")
    torch.set_num_threads(1)
    print(f"{describe_machine()}; one thread\n")
    if arguments.parts:
        print("| network | images at a time | full pass, ms an image | cascade at 50 % |")
        print("|---|---|---|---|")
    else:
        print(
            "| network | batch | mult-adds | wall clock | processor | saving kept | ms an image "
            "| plain full pass over it |"
        )
        print("|---|---|---|---|---|---|---|---|")
    for name in arguments.networks:
        batches = arguments.batches or BATCHES[name]
        num_images = arguments.images or max(arguments.parts or batches)
        if name == "digits":
            case = trained_case(arguments.config, arguments.weights, num_images)
        else:
            case = Case(*random_network(PRESETS[PRESET[name]], num_images))
        if arguments.parts:
            print_parts(name, case, arguments.parts, arguments.rounds)
        else:
            print_savings(name, case, batches, arguments.rounds, with_plain=not arguments.no_plain)


if __name__ == "__main__":
    main()
