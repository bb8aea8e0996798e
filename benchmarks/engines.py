"""Compare engines and forms of the network on a CPU, interleaved in one process.

    python -m benchmarks.engines                              # CIFAR, full pass and cascade
    python -m benchmarks.engines --networks imagenet --batches 1 8 --threads 2

The plain form of `benchmarks.plain`, exported as one graph with folded norms, stands for the
authors' network. "ours" are the stages of an export, run one after the other by the cascade. All
contenders see the same images, in turn, in each round; ratios are medians over the rounds. The
networks have random weights; the geometric rule sets the thresholds for a mean cost of 25, 50 and
75 % on the images that are timed.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.network import describe_machine
from benchmarks.plain import PlainRANet
from benchmarks.reference import random_network
from pipelines.model_export.cascade import CompiledCascade
from pipelines.model_export.folder import ExportOptions, write_export
from pipelines.model_export.onnx_writer import to_onnx
from ranet import PRESETS, RANet, SavedModel, fit_thresholds, mult_adds, official_state_dict
from ranet.model.metadata import (
    BudgetAccuracy,
    DataRecord,
    ExitAccuracy,
    ModelMetadata,
    Origin,
    Preprocessing,
)
from ranet.model.preprocessing import Normalize

NETWORKS = {"cifar": "cifar_script", "imagenet": "imagenet_readme"}
SHARES = (0.25, 0.5, 0.75)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
Contender = Callable[[np.ndarray], object]


class PlainGraph(nn.Module):
    """Plain form on uint8 images, with folded norms."""

    def __init__(self, model: RANet) -> None:
        super().__init__()
        self.normalize = Normalize(MEAN, STD)
        self.plain = PlainRANet(model.config).eval()
        self.plain.load_state_dict(official_state_dict(model))
        for module in list(self.plain.modules()):
            if isinstance(module, nn.Sequential):
                fold_norms(module)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images to the logits of every exit."""
        return tuple(self.plain.exits(self.normalize(images)))


def fold_norms(sequence: nn.Sequential) -> None:
    """Replace each convolution and the norm after it by one convolution."""
    for k, module in enumerate(sequence):
        if isinstance(module, nn.BatchNorm2d):
            conv = sequence[k - 1]
            assert isinstance(conv, nn.Conv2d)
            sequence[k - 1], sequence[k] = fuse_conv_bn_eval(conv, module), nn.Identity()
        elif isinstance(module, nn.ReLU):
            sequence[k] = nn.ReLU()  # the writer has no operations in place


@dataclass(frozen=True)
class Case:
    """Network, images and exports that all contenders share."""

    model: RANet
    images: np.ndarray
    folder: Path
    """Folder of the exports and of the plain graph."""


def make_case(name: str, num_images: int, folder: Path) -> Case:
    """Create a network with random weights and write its exports."""
    model, _ = random_network(PRESETS[NETWORKS[name]])
    size = model.config.image_size
    images = np.random.default_rng(0).integers(0, 256, (num_images, 3, size, size), np.uint8)
    saved = SavedModel(describe(model, torch.from_numpy(images)), model.state_dict())
    write_export(saved, ExportOptions("onnx"), folder / "fp32")
    write_export(saved, ExportOptions("openvino", "bf16"), folder / "bf16")
    with torch.no_grad():
        program = torch.export.export(
            PlainGraph(model),
            (torch.from_numpy(images[:2]),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )
    names = [f"logits{k}" for k in range(model.config.num_exits)]
    (folder / "plain.onnx").write_bytes(to_onnx(program, ["images"], names).SerializeToString())
    return Case(model, images, folder)


def describe(model: RANet, images: Tensor) -> ModelMetadata:
    """Describe a random network, with thresholds for each share of the full cost."""
    costs = mult_adds(model.config)
    with torch.inference_mode():
        confidences = model.optimized()(Normalize(MEAN, STD)(images)).softmax(2).amax(2)
    right = torch.ones_like(confidences, dtype=torch.bool)  # the geometric rule never reads it
    curve = []
    for share in SHARES:
        thresholds = fit_thresholds(confidences, right, costs, share * costs[-1], rule="geometric")
        curve.append(BudgetAccuracy(share, tuple(thresholds.tolist()), 0, 0, 0, ()))
    full = (1.0,) * len(costs)  # every exit runs, and no image of a random network leaves
    return ModelMetadata(
        name="random",
        model=model.config,
        class_names=tuple(map(str, range(model.config.num_classes))),
        preprocessing=Preprocessing(
            image_size=model.config.image_size, crop_share=1, mean=MEAN, std=STD
        ),
        exit_ensemble="none",
        exits=tuple(ExitAccuracy(cost, 0, 0, 0, 0) for cost in costs),
        curve=(*curve, BudgetAccuracy(1.0, full, 0, 0, 0, ())),
        data=DataRecord(name="", num_images={}, sha256={}, content_sha256={}),
        origin=Origin(command="", commit="", seed=0),
        licence="",
    )


def plain_contender(case: Case, engine: str, threads: int) -> Contender:
    """Compile the plain graph; the engine is named as in `make_contenders`."""
    file = case.folder / "plain.onnx"
    if engine == "onnxruntime fp32":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})
    hint = "bf16" if engine.endswith("bf16") else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    request = openvino.Core().compile_model(file, "CPU", settings).create_infer_request()
    return lambda images: request.infer([images], share_inputs=True)


def make_contenders(case: Case, threads: int) -> dict[str, Contender]:
    """Compile all forms for all engines."""
    contenders: dict[str, Contender] = {}
    for engine in ("onnxruntime fp32", "openvino fp32", "openvino bf16"):
        name, _, precision = engine.partition(" ")
        contenders[f"plain, {engine}"] = plain_contender(case, engine, threads)
        for share in (1.0, *SHARES):
            cascade = CompiledCascade(case.folder / precision, name, share, threads)
            label = "all exits" if share == 1 else f"cascade {100 * share:.0f} %"
            contenders[f"ours, {engine}, {label}"] = cascade
    return contenders


@dataclass(frozen=True)
class Seconds:
    """Times of one contender, one per round."""

    wall: list[float]
    processor: list[float]
    """CPU time of the process, which other work on the machine disturbs less."""


def time_in_turn(
    contenders: dict[str, Contender], images: np.ndarray, batch: int, rounds: int
) -> dict[str, Seconds]:
    """Time each contender on all images in batches, round by round, after two warm-up rounds."""
    seconds = {name: Seconds([], []) for name in contenders}
    for number in range(-2, rounds):
        for name, classify in contenders.items():
            wall, processor = time.perf_counter(), time.process_time()
            for first in range(0, len(images), batch):
                classify(images[first : first + batch])
            if number >= 0:
                seconds[name].wall.append(time.perf_counter() - wall)
                seconds[name].processor.append(time.process_time() - processor)
    return seconds


def print_rows(case: Case, network: str, batch: int, threads: int, rounds: int) -> None:
    """Print one line per contender."""
    images = case.images[: max(batch, 16)]
    contenders = make_contenders(case, threads)
    seconds = time_in_turn(contenders, images, batch, rounds)
    full_cost = mult_adds(case.model.config)[-1]
    calls = -(-len(images) // batch)
    for name, times in seconds.items():
        _, engine, *label = name.split(", ")
        precision = engine.split()[1]
        plains = [key for key in seconds if key.startswith("plain") and key.endswith(precision)]
        best = min(plains, key=lambda key: statistics.median(seconds[key].processor))
        ratio = median_ratio(seconds[best].processor, times.processor)
        kept = ""
        cascade = contenders[name]
        if label and label[0] != "all exits" and isinstance(cascade, CompiledCascade):
            cost_share = cascade(images).mult_adds.mean() / full_cost
            full = seconds[f"ours, {engine}, all exits"]
            time_share = median_ratio(times.processor, full.processor)
            kept = f"{100 * (1 - time_share) / (1 - cost_share):.0f} %"
        print(
            f"| {network} | {batch} | {threads} | {name} | "
            f"{1000 * statistics.median(times.wall) / calls:.2f} | "
            f"{1000 * statistics.median(times.processor) / calls:.2f} | x{ratio:.2f} | {kept} |",
            flush=True,
        )


def median_ratio(over: list[float], under: list[float]) -> float:
    """Median over the rounds."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["cifar"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{describe_machine()}; onnxruntime {onnxruntime.__version__}, openvino "
        f"{openvino.__version__}\n"
    )
    print(
        "| network | batch | threads | form | wall, ms a batch | CPU, ms a batch "
        "| best plain form over it | saving kept |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            case = make_case(network, max(16, *arguments.batches), Path(folder))
            for batch in arguments.batches:
                for threads in arguments.threads:
                    print_rows(case, network, batch, threads, arguments.rounds)


if __name__ == "__main__":
    main()
