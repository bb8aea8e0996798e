"""Measure everything that needs a GPU, with torch, numpy, pyarrow and Pillow.

    python -m benchmarks.gpu --out outputs/gpu                       # resumes where it stopped
    python -m benchmarks.gpu --out outputs/gpu --only correctness speed
    python -m benchmarks.gpu --out outputs/gpu --only training --cifar FOLDER --epochs 300
    python -m benchmarks.gpu --out outputs/gpu --device cpu --tiny   # check the script itself

The parts run in this order: correctness (against the CPU and the conformance files), speed (against
the plain form on the same card), cascade, profile, training (CIFAR-10 with the paper's network, by
our recipe and by the paper's; only with --cifar). Results are saved after every measurement in
OUT/results.json; a second invocation measures what is still missing, and a training resumes from
the state in OUT/training, whose files have at most 16 MB. The table is printed at the end and saved
as OUT/results.md.
"""

import argparse
import platform
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch

from benchmarks.cuda.correctness import correctness_items
from benchmarks.cuda.items import Item, Results
from benchmarks.cuda.speed import speed_items
from benchmarks.cuda.training import Setting, training_items
from ranet import PRESETS, ModelConfig

PARTS = ("correctness", "speed", "cascade", "profile", "training")
NETWORKS = {
    "cifar": PRESETS["cifar_script"],
    "imagenet C 32": PRESETS["imagenet_readme"],
    "imagenet C 64": PRESETS["imagenet_paper"],
}
BATCHES = {"cifar": (256,), "imagenet C 32": (128, 256), "imagenet C 64": (128, 256)}
TINY = ModelConfig(
    scales=(1, 2),
    growth_factors=(2, 1),
    bottleneck_factors=(2, 1),
    growth_rate=4,
    stem_channels=4,
    layers_per_block=2,
    num_blocks=1,
    extra_blocks=1,
    exit_channels=8,
    image_size=16,
)
"""Network for a check of the script itself."""


def make_items(
    networks: dict[str, ModelConfig],
    batches: dict[str, tuple[int, ...]],
    device: torch.device,
    conformance: Path | None,
    rounds: int,
) -> Iterator[Item]:
    """Yield all measurements, the most important ones first."""
    yield from correctness_items(next(iter(networks.values())), device, conformance)
    yield from speed_items(networks, device, batches=batches, rounds=rounds)


def describe(device: torch.device) -> str:
    """Describe hardware and versions."""
    if device.type != "cuda":
        return f"{platform.processor() or platform.machine()}, torch {torch.__version__}"
    return (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )


def main() -> None:
    """Measure what is missing, then print and save the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="folder of results")
    parser.add_argument(
        "--minutes", type=float, default=9, help="no measurement starts later; trainings stop"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--conformance", type=Path, help="folder of the conformance files")
    parser.add_argument(
        "--cifar", type=Path, help="folder of cifar10-train.parquet and cifar10-test.parquet"
    )
    parser.add_argument("--epochs", type=int, default=300, help="epochs of each training")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to check the script")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is available to torch; use --device cpu --tiny to check the script")
    if arguments.conformance and not arguments.conformance.is_dir():
        parser.error(f"--conformance {arguments.conformance} is no folder")
    if arguments.cifar and not (arguments.cifar / "cifar10-train.parquet").is_file():
        parser.error(f"--cifar {arguments.cifar} has no cifar10-train.parquet")
    deadline = time.monotonic() + 60 * arguments.minutes
    device = torch.device(arguments.device)
    networks, batches = ({"tiny": TINY}, {"tiny": (4,)}) if arguments.tiny else (NETWORKS, BATCHES)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = Results(arguments.out / "results.json")
    items = make_items(networks, batches, device, arguments.conformance, arguments.rounds)
    if arguments.cifar:
        setting = Setting(
            cifar=arguments.cifar,
            out=arguments.out / "training",
            epochs=arguments.epochs,
            deadline=deadline,
            device=device,
        )
        items = chain(items, training_items(next(iter(networks.values())), setting))
    is_done = results.run((item for item in items if item.part in arguments.only), deadline)
    table = f"{describe(device)}\n\n{results.table()}\n"
    (arguments.out / "results.md").write_text(table)
    print(table)
    if not is_done:
        print("measurements are missing; run the same command again")
    failed = [key for key, values in results.values.items() if values.get("passed") is False]
    errors = [key for key, values in results.values.items() if "error" in values]
    for key in failed:
        print(f"FAILED {key}")
    for key in errors:
        print(f"ERROR {key}: {results.values[key]['error']}")
    sys.exit(1 if failed or errors else 0)


if __name__ == "__main__":
    main()
