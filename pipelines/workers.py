"""What one training worker does, and what it leaves behind."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint
from torch import nn

from cluster.execution.reporter import SNAPSHOT, RayReporter, load_checkpoint, load_newest
from cluster.storage.download import Cache
from pipelines.data.config import SPLITS, Split
from pipelines.data.loading.loader import open_batches
from pipelines.data.loading.staging import staged_data
from pipelines.run import Run, configure_logging
from ranet import RANet, mult_adds
from ranet.evaluation.exit_outputs import SplitOutputs, collect_exit_outputs
from ranet.inference.latency import measure_latency
from ranet.model.preprocessing import Normalize
from ranet.protocols import Batches, Metrics, Snapshot
from ranet.training.loop import fit
from tuning.objective import SECONDS, Objective

EXIT_OUTPUTS = "scores.pt"


@dataclass(frozen=True)
class TrainOutput:
    """What a complete training leaves in its last checkpoint."""

    snapshot: Snapshot
    """State after the last epoch, with the history of all epochs and the best weights."""
    val: SplitOutputs
    """Answers of the best weights to the validation images."""
    test: SplitOutputs
    """Answers of the best weights to the test images."""


def train_worker(config: dict[str, Any]) -> None:
    """Train, from the last checkpoint if there is one, then score the best weights.

    Args:
        config: `run`, a Run whose paths are absolute.
    """
    device = set_up(config["run"])
    with on_this_node(config["run"]) as run:
        _train(run, device)


def trial_worker(config: dict[str, Any]) -> None:
    """Train as `train_worker` does, measure the objective after every epoch, and never read test.

    Args:
        config: `run`, a Run whose paths are absolute, and `objective`, that of the sweep.
    """
    started = time.monotonic()
    objective: Objective = config["objective"]
    device = set_up(config["run"])
    with on_this_node(config["run"]) as run:
        saved = _saved()
        model, normalize = _make_model(run, device)
        train, val = (open_split(run, split, device) for split in ("train", "val"))
        is_first = ray.train.get_context().get_world_rank() == 0
        latency = None
        if "latency" in objective.names and is_first:
            latency = measure_latency(model)[-1].item()
        history = saved[SNAPSHOT]["history"] if saved else []
        before = history[-1][SECONDS] if history else 0.0
        cost = mult_adds(run.model)

        def measure(network: nn.Module) -> Metrics:
            answers = collect_exit_outputs(network, val, normalize=normalize, device=device)
            metrics = objective.measure(answers.alone, cost, latency) if is_first else {}
            return {**metrics, SECONDS: before + time.monotonic() - started}

        fit(
            run.train, model, train, val, RayReporter(),
            normalize=normalize, device=device, resume=saved.get(SNAPSHOT), measure=measure,
        )  # fmt: skip


def _saved() -> dict[str, Any]:
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # the driver reports a failure, once
    return load_newest()


def _make_model(run: Run, device: torch.device) -> tuple[RANet, Normalize]:
    torch.manual_seed(run.train.seed)
    model = RANet(run.model).to(device)
    return model, Normalize(run.data.mean, run.data.std).to(device)


def _train(run: Run, device: torch.device) -> None:
    saved = _saved()
    if EXIT_OUTPUTS in saved:  # stopped when all but the driver's part was done
        return
    model, normalize = _make_model(run, device)
    train, val, test = (open_split(run, split, device) for split in SPLITS)
    reporter = RayReporter()
    snapshot = fit(
        run.train, model, train, val, reporter,
        normalize=normalize, device=device, resume=saved.get(SNAPSHOT),
    )  # fmt: skip
    model.load_state_dict(snapshot["best"]["model"])
    scores = score(model, {"val": val, "test": test}, normalize, device)
    reporter.save(snapshot["history"][-1], {SNAPSHOT: snapshot, EXIT_OUTPUTS: scores})


def score(
    model: RANet, splits: Mapping[str, Batches], normalize: Normalize, device: torch.device
) -> dict[str, Any]:
    """Collect answers in float32, whatever was trained in: so the registered model answers.

    Returns:
        By the name of the split, for `exit_outputs_in`.
    """
    return {
        name: collect_exit_outputs(model, batches, normalize=normalize, device=device).state()
        for name, batches in splits.items()
    }


def exit_outputs_in(files: Mapping[str, Any]) -> dict[str, SplitOutputs]:
    """Give the answers that workers left among the files of a checkpoint, by split."""
    return {split: SplitOutputs.from_state(state) for split, state in files[EXIT_OUTPUTS].items()}


@contextmanager
def on_this_node(run: Run) -> Iterator[Run]:
    """Give a run whose images are on this node's disk; those in S3 are loaded to it, once."""
    cache = Cache(Path(run.cluster.cache_dir).expanduser(), run.cluster.cache_max_bytes)
    with staged_data(run.data, cache) as data:
        yield replace(run, data=data)


def set_up(run: Run) -> torch.device:
    """Make this process ready to work on a run; return its device."""
    # One worker speaks for all: a job's log is read by people.
    configure_logging(only_errors=ray.train.get_context().get_world_rank() > 0)
    torch.set_num_threads(run.cluster.cpus_per_worker)
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    return device


def open_split(run: Run, split: Split, device: torch.device) -> Batches:
    """Open this worker's part of a split."""
    context = ray.train.get_context()
    return open_batches(
        run.data,
        split,
        image_size=run.model.image_size,
        batch_size=run.train.batch_size,
        rank=context.get_world_rank(),
        num_workers=context.get_world_size(),
        seed=run.train.seed,
        device=device,
        epoch_sizes=run.train.epoch_sizes,
    )


def read_trained(checkpoint: Checkpoint) -> TrainOutput:
    """Read what `train_worker` left in its last checkpoint."""
    files = load_checkpoint(checkpoint)
    return TrainOutput(snapshot=files[SNAPSHOT], **exit_outputs_in(files))
