"""Ray Train worker functions of runs and trials, and their results."""

import copy
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
from torch import Tensor, nn

from cluster.cli import configure_logging
from cluster.execution.failures import memory_advice
from cluster.execution.reporter import RayReporter
from cluster.storage.cache import Cache
from cluster.storage.checkpoints import SNAPSHOT, load_checkpoint, load_newest
from pipelines.data.config import SPLITS, Split, normalization
from pipelines.data.format.metadata import read_info, with_normalization
from pipelines.data.loading.loader import Worker, open_batches
from pipelines.data.loading.staging import staged_data
from pipelines.run import Run
from ranet import RANet, mult_adds
from ranet.evaluation.exit_outputs import SplitOutputs, collect_exit_outputs
from ranet.evaluation.forward import ForwardPass
from ranet.inference.latency import measure_latency
from ranet.model.preprocessing import Normalize
from ranet.protocols import Batches, Metrics, Snapshot
from ranet.training.loop import fit
from ranet.training.schedule import epoch_sizes
from ranet.training.state import TrainState
from tuning.objective import SECONDS, Objective

EXIT_OUTPUTS = "scores.pt"


@dataclass(frozen=True)
class TrainOutput:
    """Results of a finished training, read from its last checkpoint."""

    snapshot: Snapshot
    """Snapshot after the last epoch, with the metrics of all epochs and the best weights."""
    val: SplitOutputs
    """Exit outputs of the best weights for the validation images."""
    test: SplitOutputs
    """Exit outputs of the best weights for the test images."""


@dataclass(frozen=True)
class TrialTask:
    """Training of a trial."""

    run: Run
    """Run with absolute paths."""
    objective: Objective
    """Objective of the sweep."""


@dataclass(frozen=True)
class EvaluateTask:
    """Evaluation of existing weights."""

    run: Run
    """Run with absolute paths."""
    weights: dict[str, Tensor]
    """State dict of the network of the run."""


def train_worker(run: Run) -> None:
    """Train, resuming from the latest checkpoint, and evaluate the best weights.

    Args:
        run: Run with absolute paths.
    """
    device = _set_up(run)
    with _with_local_data(run) as local_run:
        _train(local_run, device)


def trial_worker(task: TrialTask) -> None:
    """Train a trial and measure the objective after every epoch."""
    started = time.monotonic()
    objective = task.objective
    device = _set_up(task.run)
    with _with_local_data(task.run) as run:
        saved = _saved()
        model, normalize = _make_model(run, device)
        train, val = (_open_split(run, split, device) for split in ("train", "val"))
        is_first = ray.train.get_context().get_world_rank() == 0
        latency = None
        if "latency_ms" in objective.metrics and is_first:
            latency = measure_latency(model)[-1].item()
        history = saved[SNAPSHOT]["history"] if saved else []
        before = history[-1][SECONDS] if history else 0.0
        cost = mult_adds(run.model)

        def measure(network: nn.Module) -> Metrics:
            outputs = collect_exit_outputs(_scoring(run, network, normalize), val)
            metrics = objective.measure(outputs.single, cost, latency) if is_first else {}
            return {**metrics, SECONDS: before + time.monotonic() - started}

        training = TrainState(run.train, model, normalize)
        reporter = RayReporter()
        with memory_advice("training", _smaller_step(run)):
            # Popped: the snapshot is not kept for the whole trial.
            fit(training, train, val, reporter, resume=saved.pop(SNAPSHOT, None), measure=measure)


def evaluate_worker(task: EvaluateTask) -> None:
    """Collect the exit outputs of the validation and the test images."""
    device = _set_up(task.run)
    with _with_local_data(task.run) as run:
        model, normalize = _make_model(run, device)
        model.load_state_dict(task.weights)
        splits = {split: _open_split(run, split, device) for split in ("val", "test")}
        outputs = _collect_outputs(run, model, normalize, splits)
        RayReporter().save({}, {EXIT_OUTPUTS: outputs})


def _saved() -> dict[str, Any]:
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)  # the driver reports a failure once
    return load_newest()


def _make_model(run: Run, device: torch.device) -> tuple[RANet, Normalize]:
    torch.manual_seed(run.train.seed)
    model = RANet(run.model).to(device)
    return model, Normalize(*normalization(run.data)).to(device)


def _train(run: Run, device: torch.device) -> None:
    saved = _saved()
    if EXIT_OUTPUTS in saved:  # the workers had finished when the run was interrupted
        return
    model, normalize = _make_model(run, device)
    train, val, test = (_open_split(run, split, device) for split in SPLITS)
    reporter = RayReporter()
    training = TrainState(run.train, model, normalize)
    with memory_advice("training", _smaller_step(run)):
        # Popped: the snapshot is not kept for the whole run.
        snapshot = fit(training, train, val, reporter, resume=saved.pop(SNAPSHOT, None))
    best = copy.deepcopy(model)  # the snapshot to save holds the tensors of the model
    best.load_state_dict(snapshot["best"]["model"])
    outputs = _collect_outputs(run, best, normalize, {"val": val, "test": test})
    reporter.save(snapshot["history"][-1], {SNAPSHOT: snapshot, EXIT_OUTPUTS: outputs})


def _collect_outputs(
    run: Run, model: nn.Module, normalize: Normalize, splits: Mapping[str, Batches]
) -> dict[str, Any]:
    """Collect exit outputs in float32, like the registered model.

    Returns:
        Serialized exit outputs by split, for `exit_outputs_in`.
    """
    forward = _scoring(run, model, normalize)
    with memory_advice("evaluating the network", _fewer_images(run)):
        return {
            name: collect_exit_outputs(forward, batches).state() for name, batches in splits.items()
        }


def _scoring(run: Run, model: nn.Module, normalize: Normalize) -> ForwardPass:
    """Return the forward pass in float32 that exit outputs are collected with."""
    return ForwardPass(model, normalize, max_images=run.train.evaluation_batch_size)


def _smaller_step(run: Run) -> str:
    """Advice for a training step that does not fit into the memory."""
    share = -(-run.train.batch_size // ray.train.get_context().get_world_size())
    size = min(run.train.micro_batch_size or share, share)
    return (
        f"{size} images pass through the network at once: set train.micro_batch_size below that, "
        "or use more workers or a smaller model"
    )


def _fewer_images(run: Run) -> str:
    """Advice for a network that does not fit into the memory."""
    size = run.train.evaluation_batch_size
    return f"set train.micro_batch_size below {size}, or use fewer workers per GPU or node"


def exit_outputs_in(files: Mapping[str, Any]) -> dict[str, SplitOutputs]:
    """Return the exit outputs among the files of a checkpoint, by split."""
    return {split: SplitOutputs.from_state(state) for split, state in files[EXIT_OUTPUTS].items()}


@contextmanager
def _with_local_data(run: Run) -> Iterator[Run]:
    """Yield the run with local images, and their mean and std."""
    cache = Cache(Path(run.cluster.cache_dir).expanduser(), run.cluster.cache_max_bytes)
    with staged_data(run.data, cache) as data:
        # One decoding thread per CPU of this worker, not per CPU of the node.
        threads = data.decode_threads or run.cluster.cpus_per_worker
        data = replace(data, decode_threads=threads)
        if data.mean is None or data.std is None:
            data = with_normalization(data, read_info(data, run.model.image_size))
        yield replace(run, data=data)


def _set_up(run: Run) -> torch.device:
    """Configure logging and threads of this process; return its device."""
    # Only rank 0 logs at INFO level.
    configure_logging(only_errors=ray.train.get_context().get_world_rank() > 0)
    torch.set_num_threads(run.cluster.cpus_per_worker)
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    return device


def _open_split(run: Run, split: Split, device: torch.device) -> Batches:
    """Open this worker's shard of a split."""
    context = ray.train.get_context()
    return open_batches(
        run.data,
        split,
        image_size=run.model.image_size,
        batch_size=run.train.batch_size,
        worker=Worker(
            rank=context.get_world_rank(),
            num_workers=context.get_world_size(),
            seed=run.train.seed,
            device=device,
        ),
        epoch_sizes=epoch_sizes(run.train),
    )


def read_trained(checkpoint: Checkpoint) -> TrainOutput:
    """Read the results of `train_worker` from its last checkpoint."""
    files = load_checkpoint(checkpoint)
    return TrainOutput(snapshot=files[SNAPSHOT], **exit_outputs_in(files))
