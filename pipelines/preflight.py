"""Pre-flight check of a run: cost estimate and missing requirements."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import yaml

import cluster.provisioning
from cluster.findings import Finding, check, format_bytes
from cluster.preflight import (
    Allocation,
    allocate,
    check_caches,
    check_storage,
    check_tracking,
    current_capacity,
)
from cluster.storage.s3 import is_uri
from pipelines.data.preflight import check_images
from pipelines.evaluation.budgets import check_budgets
from pipelines.run import Run, identity
from ranet import RANet, mult_adds
from ranet.config import TrainConfig
from ranet.training.schedule import is_checkpoint_due

RATES = Path(cluster.provisioning.__file__).with_name("throughput.yaml")
"""Measured training images per second, by network and device."""
ASSUMED_RATE = 100.0
"""Images per second of a worker where none were measured."""


@dataclass(frozen=True)
class PreflightReport:
    """All findings about a run."""

    findings: tuple[Finding, ...]

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Heading and text of each fact."""
        return [(each.name, each.text) for each in self.findings if not each.is_missing]

    @property
    def missing(self) -> list[str]:
        """Missing requirements, one sentence each."""
        return [each.text for each in self.findings if each.is_missing]

    @property
    def can_start(self) -> bool:
        """Return whether no requirement is missing."""
        return not self.missing

    def __str__(self) -> str:
        """Format the report for the terminal."""
        lines = [f"{name:<13} {text}" for name, text in self.lines]
        lines += [f"MISSING       {sentence}" for sentence in self.missing]
        return "\n".join([*lines, "can start" if self.can_start else "cannot start"])


def preflight(run: Run, *, new_attempt: bool = False) -> PreflightReport:
    """Estimate the cost of a run and check its requirements."""
    costs = mult_adds(run.model)
    with torch.device("meta"):
        model = RANet(run.model)
    capacity_findings, capacity = current_capacity(run.cluster)
    is_here = capacity is not None and capacity.suffices
    if capacity is not None:
        run = replace(run, cluster=capacity.cluster)
    images = check_images(run.data, run.model, run.train.batch_size, is_here=is_here)
    stages_images = is_uri(run.data.prepared_dir)
    uses_this_machine = is_here and not os.environ.get("RAY_ADDRESS")
    findings = [
        *(check_caches(run.cluster, stages_images=stages_images) if uses_this_machine else ()),
        _network(model, costs),
        *check(partial(check_budgets, costs, run.evaluation.budget_fractions)),
        *check_tracking(run.name, identity(run), new_attempt=new_attempt),
        *check_storage(run.cluster),
        *capacity_findings,
        *images.findings,
    ]
    if capacity is not None:
        allocation_findings, allocation = allocate(run.cluster, capacity, images.cache_bytes)
        findings += allocation_findings
        if allocation is not None and images.num_train:
            findings += estimate_time(run, images.num_train, costs[-1], allocation)
    findings.append(_checkpoints(run, model, images.num_train))
    return PreflightReport(tuple(findings))


def _network(model: RANet, costs: tuple[int, ...]) -> Finding:
    parameters = sum(each.numel() for each in model.parameters())
    return Finding(
        "network",
        f"{parameters / 1e6:.2f} M parameters, {len(costs)} exits, "
        f"{costs[0] / 1e6:,.2f} to {costs[-1] / 1e6:,.2f} M mult-adds per image",
    )


def estimate_time(
    run: Run, num_images: int, cost: int, allocation: Allocation
) -> Iterable[Finding]:
    """Estimate steps, hours and GPU-hours.

    Args:
        run: The run.
        num_images: Number of training images.
        cost: Mult-adds of the last exit.
        allocation: Workers of the run.
    """
    train, num_workers = run.train, allocation.num_workers
    steps = num_images // train.batch_size
    total = train.epochs * steps * train.batch_size
    yield Finding(
        "steps",
        f"{train.epochs} epochs of {steps:,}, {train.epochs * steps:,} in total; "
        f"{total:,} training images",
    )
    rate = stored_rate(train, cost, allocation.device, run.cluster.cpus_per_worker)
    if rate is None:
        text = (
            f"unknown: {RATES.name} has no rate of this network in {train.precision} on "
            f"{allocation.device}"
        )
        assumption = f"at {ASSUMED_RATE:g} images/s per worker: "
    else:
        text = (
            f"{rate * num_workers:,.0f} with {num_workers} workers, {rate:g} each "
            "(measured per worker; the total is computed)"
        )
        assumption = ""
    hours = total / ((rate or ASSUMED_RATE) * max(num_workers, 1)) / 3600
    yield Finding("images/s", text)
    yield Finding("time", f"{assumption}{hours:,.2f} h, without validation and start-up")
    if allocation.spec:
        machines = allocation.spec.num_nodes(
            run.cluster, gpus=allocation.gpus, num_workers=num_workers
        )
        yield Finding(
            "GPU-hours",
            f"{assumption}{hours * num_workers * allocation.gpus:,.2f} on {num_workers} workers; "
            f"{machines} machines and the head, each {hours:,.2f} h",
        )


def _checkpoints(run: Run, model: torch.nn.Module, num_images: int) -> Finding:
    size = checkpoint_bytes(run.train, model)
    text = f"{format_bytes(size)} each, {run.cluster.keep_checkpoints} kept"
    if num_images:
        steps = num_images // run.train.batch_size
        ends = (divmod(done, steps) for done in range(1, run.train.epochs * steps + 1))
        # One more checkpoint contains the exit outputs.
        number = sum(is_checkpoint_due(run.train, *end, steps) for end in ends) + 1
        text += f"; {number:,} in total, {format_bytes(number * size)}"
        text += f" to {run.cluster.storage_path}"
    return Finding("checkpoints", text)


def checkpoint_bytes(train: TrainConfig, model: torch.nn.Module) -> int:
    """Compute the size of a checkpoint: weights, momentum, best weights, EMA."""
    weights = sum(each.numel() * each.element_size() for each in model.state_dict().values())
    momentum = sum(each.numel() * each.element_size() for each in model.parameters())
    return weights * (3 if train.ema.decay else 2) + momentum


def stored_rate(train: TrainConfig, cost: int, device: str, cores: int) -> float | None:
    """Look up the measured images per second of one worker.

    Args:
        train: Training settings, which contain the precision.
        cost: Mult-adds of the last exit, which identify the network.
        device: Kind of GPU, or cpu.
        cores: CPUs of a worker; ignored for GPUs.
    """
    for entry in yaml.safe_load(RATES.read_bytes()):
        known = (entry["mult_adds"], entry["precision"], entry["device"], entry.get("cores"))
        if known == (cost, train.precision, device, cores if device == "cpu" else None):
            return float(entry["images_per_second"])
    return None
