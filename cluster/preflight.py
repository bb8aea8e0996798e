"""Pre-flight checks of MLflow, storage, and capacity for workers."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import ray
import torch

from cluster.config import ClusterConfig
from cluster.environment import check_cache_folder, check_ray_settings
from cluster.errors import EXPECTED_ERRORS, RunError
from cluster.execution.connection import connected
from cluster.execution.resources import wants_gpu
from cluster.findings import Finding, check, missing
from cluster.provisioning.cluster_file import CLUSTER_FILE, ClusterSpec, read_cluster_spec
from cluster.provisioning.preconditions import precondition_findings
from cluster.storage.filesystem import resolve_storage
from cluster.tracking import client, runs


@dataclass(frozen=True)
class Capacity:
    """Capacity of the current cluster, or of this machine."""

    name: str
    resources: Mapping[str, float]
    """Resources by Ray's names."""
    gpus: int
    """GPUs of each worker."""
    num_workers: int
    """Workers that fit."""
    suffices: bool
    """The run needs no rented machines: it fits, or does not use GPUs."""
    cluster: ClusterConfig
    """Resources that the run requests there, reduced to those of this machine."""


@dataclass(frozen=True)
class Allocation:
    """Workers of a run, and the machines that they run on."""

    gpus: int
    """GPUs of each worker."""
    device: str
    """Kind of GPU by Ray's name, or cpu."""
    num_workers: int
    """Max. number of workers."""
    spec: ClusterSpec | None
    """Cluster file whose machines are rented; None: the current cluster is used."""


def fit_to_machine(cluster: ClusterConfig) -> ClusterConfig:
    """Reduce workers and their CPUs to those of this machine.

    A cluster at RAY_ADDRESS is not reduced. The reduction does not change what is trained: more
    workers than CPUs would only share them, and each needs its memory.

    Raises:
        RunError: the device is gpu, and this machine has fewer GPUs than workers.
    """
    if os.environ.get("RAY_ADDRESS") or ray.is_initialized():
        return cluster
    num_cpus, num_gpus = os.cpu_count() or 1, torch.cuda.device_count()
    if cluster.device == "gpu" and num_gpus < cluster.min_workers * cluster.gpus_per_worker:
        raise RunError(
            f"cluster.device is gpu for {cluster.min_workers} workers, but this machine has "
            f"{num_gpus} GPUs; set RAY_ADDRESS to a cluster, use fewer workers, or set "
            "cluster.device to cpu"
        )
    low, high = min(cluster.min_workers, num_cpus), min(cluster.max_workers, num_cpus)
    return replace(
        cluster,
        num_workers=low if low == high else (low, high),
        cpus_per_worker=min(cluster.cpus_per_worker, num_cpus // high),
    )


def describe_reduction(before: ClusterConfig, after: ClusterConfig) -> str:
    """Describe the reduction by `fit_to_machine`; empty without one."""
    if (before.max_workers, before.cpus_per_worker) == (after.max_workers, after.cpus_per_worker):
        return ""
    return (
        f"this machine has {os.cpu_count()} CPUs: {after.max_workers} workers of "
        f"{after.cpus_per_worker} CPUs instead of cluster.num_workers = {before.max_workers} of "
        f"cluster.cpus_per_worker = {before.cpus_per_worker}"
    )


def check_tracking(name: str, settings: Mapping[str, str], *, new_attempt: bool) -> list[Finding]:
    """Check that MLflow is reachable and the run can start."""
    can_start = partial(runs.check_can_start, name, settings=settings, new_attempt=new_attempt)
    return check(client.check_reachable, can_start)


def check_storage(cluster: ClusterConfig) -> list[Finding]:
    """Check that checkpoints can be written."""
    return check(partial(resolve_storage, cluster.storage_path))


def check_caches(cluster: ClusterConfig, *, stages_images: bool) -> list[Finding]:
    """Check the cache folders that a run on this machine writes.

    Args:
        cluster: Settings of the run.
        stages_images: The run copies images from S3 to the disk.
    """
    checks: list[Callable[[], None]] = []
    if stages_images:
        checks.append(partial(check_cache_folder, "cluster.cache_dir", cluster.cache_dir))
    if torch.cuda.is_available() and cluster.device != "cpu":  # Triton compiles kernels
        folder = os.environ.get("TRITON_CACHE_DIR", "~/.triton/cache")
        checks.append(partial(check_cache_folder, "TRITON_CACHE_DIR", folder))
    return check(*checks)


def current_capacity(cluster: ClusterConfig) -> tuple[list[Finding], Capacity | None]:
    """Return the capacity of the current cluster or of this machine.

    The capacity is None if the cluster cannot be reached.
    """
    try:
        return _current_capacity(cluster)
    except EXPECTED_ERRORS as error:
        return missing([str(error)]), None


def _current_capacity(cluster: ClusterConfig) -> tuple[list[Finding], Capacity]:
    check_ray_settings()
    if address := os.environ.get("RAY_ADDRESS"):
        with connected(cluster):
            gpus, resources = int(wants_gpu(cluster)), ray.cluster_resources()
        name, cores, remark = f"the cluster at {address}", resources.get("CPU", 0), ""
    else:
        num_gpus = torch.cuda.device_count()
        enough = cluster.device == "auto" and num_gpus >= cluster.min_workers
        gpus = int(cluster.device == "gpu" or enough)
        resources, name = {"CPU": os.cpu_count() or 1, "GPU": num_gpus}, "this machine"
        cores, remark = resources["CPU"], ""
        if not gpus or num_gpus >= cluster.min_workers:
            reduced = fit_to_machine(cluster)
            if text := describe_reduction(cluster, reduced):
                remark = f"; {text}"
            cluster = reduced
    by_gpus = resources.get("GPU", 0) // gpus if gpus else float("inf")
    num_workers = int(min(cores // cluster.cpus_per_worker, by_gpus))
    text = (
        f"{name} has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs: "
        f"capacity for {num_workers} of {cluster.min_workers} to {cluster.max_workers} "
        f"workers{remark}"
    )
    suffices = num_workers >= cluster.min_workers or not gpus
    findings = [Finding("cluster", text)]
    if address and cluster.device == "auto" and not gpus:
        text = "cpu, as the cluster has too few GPUs now; cluster.device=gpu starts GPU nodes"
        findings.append(Finding("device", text))
    return findings, Capacity(name, resources, gpus, num_workers, suffices, cluster)


def allocate(
    cluster: ClusterConfig, capacity: Capacity, cache_bytes: int
) -> tuple[list[Finding], Allocation | None]:
    """Allocate workers on the current cluster or the cluster file's machines.

    Args:
        cluster: Resources that the run requests.
        capacity: Capacity of the current cluster.
        cache_bytes: Bytes of images that each node copies to its disk.
    """
    if capacity.suffices:
        return _allocate_here(cluster, capacity)
    try:
        spec = read_cluster_spec(CLUSTER_FILE)
    except EXPECTED_ERRORS as error:
        return missing([str(error)]), None
    findings = missing(spec.problems(cluster, gpus=capacity.gpus, cache_bytes=cache_bytes))
    nodes = list(spec.worker_nodes(cluster, gpus=capacity.gpus))[: cluster.max_workers]
    machines = " and ".join(dict.fromkeys(
        f"{node.machine_name} ({'spot' if node.is_spot else 'on demand'})" for node in nodes
    ))  # fmt: skip
    findings.append(Finding("to rent", f"{machines or 'nothing'}, by {CLUSTER_FILE}"))
    findings += precondition_findings()
    device = nodes[0].machine.accelerator if nodes else "unknown"
    return findings, Allocation(capacity.gpus, device, len(nodes), spec)


def _allocate_here(cluster: ClusterConfig, capacity: Capacity) -> tuple[list[Finding], Allocation]:
    findings = []
    if capacity.num_workers < cluster.min_workers:
        findings = missing([
            f"cluster.num_workers requests {cluster.min_workers} workers of "
            f"{cluster.cpus_per_worker} CPUs, but {capacity.name} has capacity for "
            f"{capacity.num_workers}; request fewer workers or add nodes"
        ])  # fmt: skip
    prefix = "accelerator_type:"
    kinds = [name.removeprefix(prefix) for name in capacity.resources if name.startswith(prefix)]
    device = ", ".join(kinds) or "unknown" if capacity.gpus else "cpu"
    num_workers = min(capacity.num_workers, cluster.max_workers)
    return findings, Allocation(capacity.gpus, device, num_workers, None)
