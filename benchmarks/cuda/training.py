"""CIFAR-10 trainings with the paper's network: our recipe and the paper's."""

import hashlib
import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.cuda.cifar import DeviceBatches, Images, read_cifar
from benchmarks.cuda.items import Item
from pipelines.evaluation.budgets import Evaluation, evaluate_outputs
from ranet import ModelConfig, OptimConfig, RANet, TrainConfig, mult_adds
from ranet.config import EmaConfig, LossConfig
from ranet.evaluation.exit_outputs import collect_exit_outputs
from ranet.evaluation.forward import ForwardPass
from ranet.model.preprocessing import Normalize
from ranet.protocols import Metrics, Snapshot
from ranet.training.loop import fit
from ranet.training.state import TrainState

PAPER = TrainConfig(epochs=300, batch_size=64)
OURS = TrainConfig(
    epochs=300,
    batch_size=256,
    precision="bfloat16",
    loss=LossConfig(label_smoothing=0.1),
    ema=EmaConfig(decay=0.999),
    optim=OptimConfig(
        lr=0.2, nesterov=True, weight_decay=5e-4, decay="weights", schedule="cosine",
        warmup_epochs=5,
    ),
)  # fmt: skip
"""Usual settings of CIFAR-10 networks; not yet chosen by measurement."""
RECIPES = {"our recipe": OURS, "the paper's recipe": PAPER}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
PAPER_EXITS = (91.35, 91.95, 93.15, 93.2, 93.2, 93.35, 93.6, 93.7)
"""Top-1 in percent of every exit of `cifar_script`, read off the authors' figures."""
PAPER_BUDGETS = {15: 92.0, 20: 92.9, 30: 93.6, 40: 94.0}
"""Top-1 in percent by budget in million mult-adds, read off the authors' figures."""
PART_BYTES = 15_000_000
"""Max size of a file of a training's state."""
BUDGET_FRACTIONS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Setting:
    """Setting of all trainings of an invocation."""

    cifar: Path
    """Folder of the parquet files."""
    out: Path
    """Folder of the states."""
    epochs: int
    deadline: float
    """Value of `time.monotonic()` at which a training is interrupted."""
    device: torch.device


def training_items(config: ModelConfig, setting: Setting) -> Iterator[Item]:
    """Yield one training by each recipe; trainings resume."""
    for name, recipe in RECIPES.items():
        measure = partial(_train, config, recipe, name, setting)
        yield Item("training", f"{name}, {setting.epochs} epochs", measure)


class DeadlineError(Exception):
    """Training that was interrupted at the deadline, after its state was saved."""


class StateFiles:
    """State of a training in files of limited size.

    An interrupted write leaves the previous state intact.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = folder / "index.json"

    def load(self) -> tuple[Snapshot | None, float]:
        """Return the last snapshot, None before the first, and the seconds spent.

        Raises:
            ValueError: a file is damaged.
        """
        if not self.index.exists():
            return None, 0.0
        index = json.loads(self.index.read_text())
        content = b"".join((self.folder / name).read_bytes() for name in index["files"])
        if hashlib.sha256(content).hexdigest() != index["sha256"]:
            raise ValueError(f"{self.folder} is damaged; delete it to train from scratch")
        snapshot = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return snapshot, index["seconds"]

    def save(self, snapshot: Snapshot, seconds: float) -> None:
        """Write the files of a snapshot, then the index that names them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        written = io.BytesIO()
        torch.save(snapshot, written)
        content = written.getvalue()
        parts = [content[k : k + PART_BYTES] for k in range(0, len(content), PART_BYTES)]
        # Two sets of names in turn, so that the files of the present index are never overwritten.
        letter = "a"
        if self.index.exists():
            first = json.loads(self.index.read_text())["files"][0]
            letter = "b" if first.startswith("a") else "a"
        names = [f"{letter}{number:02}.pt" for number in range(len(parts))]
        for name, part in zip(names, parts, strict=True):
            (self.folder / name).write_bytes(part)
        index = {
            "files": names,
            "sha256": hashlib.sha256(content).hexdigest(),
            "seconds": seconds,
            "epoch": snapshot["epoch"],
        }
        unfinished = self.index.with_suffix(".part")
        unfinished.write_text(json.dumps(index))
        unfinished.replace(self.index)


class FileReporter:
    """Reporter that saves every epoch and stops the training at a deadline."""

    def __init__(self, files: StateFiles, seconds: float, deadline: float) -> None:
        self.files = files
        self.deadline = deadline
        self.started = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Seconds of all invocations of the training."""
        return time.monotonic() - self.started

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        """Save the snapshot of an epoch."""
        shown = {k: round(v, 2) for k, v in metrics.items() if k.startswith("val/exit")}
        print(f"epoch {metrics['epoch']:.0f}, {self.seconds:.0f} s: {shown}", flush=True)
        if snapshot is not None:
            self.files.save(snapshot, self.seconds)

    def step(self, num_images: int, seconds: float, waited: float) -> None:
        """Ignore the step."""

    def wants_checkpoint(self) -> bool:
        """Return True after the deadline."""
        return time.monotonic() > self.deadline

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Save the state and end the training.

        Raises:
            DeadlineError: always.
        """
        self.files.save(snapshot, self.seconds)
        raise DeadlineError


def _train(
    config: ModelConfig, recipe: TrainConfig, name: str, setting: Setting
) -> dict[str, Any] | None:
    """Train until the last epoch, or None at the deadline."""
    recipe = replace(recipe, epochs=setting.epochs, optim=_shortened(recipe, setting.epochs))
    folder = "".join(letter if letter.isalnum() else "-" for letter in name)
    files = StateFiles(setting.out / f"{folder}-{setting.epochs}")
    snapshot, seconds = files.load()
    splits = {
        split: Images(images.pixels.to(setting.device), images.labels.to(setting.device))
        for split, images in read_cifar(setting.cifar, config.image_size).items()
    }
    torch.manual_seed(recipe.seed)
    model = RANet(config).to(setting.device)
    normalize = Normalize(MEAN, STD).to(setting.device)
    reporter = FileReporter(files, seconds, setting.deadline)
    train = DeviceBatches(splits["train"], recipe.batch_size, recipe.seed)
    val, test = (DeviceBatches(splits[split], 1000) for split in ("val", "test"))
    try:
        training = TrainState(recipe, model, normalize)
        snapshot = fit(training, train, val, reporter, resume=snapshot)
    except DeadlineError:
        return None
    model.load_state_dict(snapshot["best"]["model"])
    forward = ForwardPass(model, normalize)
    outputs = [collect_exit_outputs(forward, split) for split in (val, test)]
    fractions = tuple(
        each for each in BUDGET_FRACTIONS if each * mult_adds(config)[-1] > mult_adds(config)[0]
    )
    evaluation = evaluate_outputs(mult_adds(config), outputs[0], outputs[1], fractions)
    return {"training minutes": reporter.seconds / 60, **_figures(evaluation)}


def _shortened(recipe: TrainConfig, epochs: int) -> OptimConfig:
    """Return the optimizer with a warm-up that fits a shorter training."""
    warmup = min(recipe.optim.warmup_epochs, epochs / 10)
    return replace(recipe.optim, warmup_epochs=warmup)


def _figures(evaluation: Evaluation) -> dict[str, float]:
    """Return test top-1 in percent, and differences to the paper."""
    values: dict[str, float] = {}
    has_paper = len(evaluation.exits) == len(PAPER_EXITS)
    for number, row in enumerate(evaluation.exits, start=1):
        values[f"exit {number} %"] = row.test_top1
        if has_paper:
            values[f"exit {number} minus paper"] = row.test_top1 - PAPER_EXITS[number - 1]
    if not has_paper:
        return values
    for millions, published in PAPER_BUDGETS.items():
        within = [
            row.test_top1
            for row in evaluation.curve
            if row.budget_fraction * evaluation.exits[-1].mult_adds <= millions * 1e6
        ]
        if within:
            values[f"{millions} M %"] = within[-1]
            values[f"{millions} M minus paper"] = within[-1] - published
    values["best %"] = max(row.test_top1 for row in evaluation.curve)
    return values
