"""Workers of a run on one machine without a cluster."""

import os
from contextlib import nullcontext

import pytest
import torch

from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.preflight import current_capacity, describe_reduction, fit_to_machine


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def of(cpus: int, gpus: int = 0) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: cpus)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return of


@pytest.mark.parametrize(
    ("cpus", "workers", "per_worker", "fitted"),
    [
        (1, 2, 1, (1, 1)),
        (2, 2, 1, (2, 1)),
        (2, 8, 8, (2, 1)),
        (2, (2, 8), 8, (2, 1)),
        (4, (2, 8), 8, ((2, 4), 1)),
        (16, 8, 8, (8, 2)),
        (64, 8, 8, (8, 8)),
        (64, (2, 8), 8, ((2, 8), 8)),
        (3, 2, 2, (2, 1)),
    ],
)
def test_workers_are_reduced_to_the_cpus_of_the_machine(cpus, workers, per_worker, fitted, machine):
    machine(cpus)
    asked = ClusterConfig(num_workers=workers, cpus_per_worker=per_worker)
    given = fit_to_machine(asked)
    assert (given.num_workers, given.cpus_per_worker) == fitted
    assert given.max_workers * given.cpus_per_worker <= cpus
    assert bool(describe_reduction(asked, given)) == (asked != given)
    assert fit_to_machine(given) == given


def test_cluster_is_not_reduced(machine, monkeypatch):
    machine(2)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    asked = ClusterConfig(num_workers=8, cpus_per_worker=8, device="gpu")
    assert fit_to_machine(asked) == asked


@pytest.mark.parametrize(
    ("gpus", "workers", "share", "starts"),
    [(0, 1, 1.0, False), (1, 2, 1.0, False), (2, 2, 1.0, True), (1, (1, 4), 1.0, True),
     (1, 1, 0.25, True), (0, 1, 0.25, False)],
)  # fmt: skip
def test_missing_gpus_end_the_run_before_it_starts(gpus, workers, share, starts, machine):
    machine(8, gpus)
    asked = ClusterConfig(num_workers=workers, device="gpu", gpus_per_worker=share)
    if starts:
        assert fit_to_machine(asked) == asked
    else:
        with pytest.raises(RunError, match=f"this machine has {gpus} GPUs; set RAY_ADDRESS"):
            fit_to_machine(asked)


@pytest.mark.parametrize(
    ("device", "gpus", "is_named"), [("auto", 0, True), ("auto", 2, False), ("cpu", 0, False)]
)
def test_training_on_the_cpus_of_a_cluster_that_may_start_gpus_is_named(
    monkeypatch, device, gpus, is_named
):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("cluster.preflight.connected", lambda cluster: nullcontext())
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, "GPU": float(gpus)})
    findings, _ = current_capacity(ClusterConfig(num_workers=2, device=device))
    texts = [each.text for each in findings if each.name == "device"]
    assert bool(texts) == is_named
    assert all("cluster.device=gpu starts GPU nodes" in text for text in texts)
