"""Pre-flight checks of MLflow, storage, and capacity for workers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import ray
import torch

from cluster.config import ClusterConfig
from cluster.errors import EXPECTED_ERRORS
from cluster.execution.connection import connected, local_cpus
from cluster.execution.resources import wants_gpu
from cluster.findings import Finding, check, missing
from cluster.provisioning.cluster_file import CLUSTER_FILE, ClusterSpec, read_cluster_spec
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


def check_tracking(name: str, settings: Mapping[str, str], *, new_attempt: bool) -> list[Finding]:
    """Check that MLflow is reachable and the run can start."""
    can_start = partial(runs.check_can_start, name, settings=settings, new_attempt=new_attempt)
    return check(client.check_reachable, can_start)


def check_storage(cluster: ClusterConfig) -> list[Finding]:
    """Check that checkpoints can be written."""
    return check(partial(resolve_storage, cluster.storage_path))


def current_capacity(cluster: ClusterConfig) -> tuple[list[Finding], Capacity | None]:
    """Return the capacity of the current cluster or of this machine.

    The capacity is None if the cluster cannot be reached.
    """
    try:
        return _current_capacity(cluster)
    except EXPECTED_ERRORS as error:
        return missing([str(error)]), None


def _current_capacity(cluster: ClusterConfig) -> tuple[list[Finding], Capacity]:
    if address := os.environ.get("RAY_ADDRESS"):
        with connected(cluster):
            gpus, resources = int(wants_gpu(cluster)), ray.cluster_resources()
        name, cores, remark = f"the cluster at {address}", resources.get("CPU", 0), ""
    else:
        num_gpus = torch.cuda.device_count()
        enough = cluster.device == "auto" and num_gpus >= cluster.min_workers
        gpus = int(cluster.device == "gpu" or enough)
        resources, name = {"CPU": os.cpu_count() or 1, "GPU": num_gpus}, "this machine"
        cores = resources["CPU"] if gpus else local_cpus(cluster)
        remark = ", which share its CPUs" if cores > resources["CPU"] else ""
    by_gpus = resources.get("GPU", 0) // gpus if gpus else float("inf")
    num_workers = int(min(cores // cluster.cpus_per_worker, by_gpus))
    text = (
        f"{name} has {resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs: "
        f"capacity for {num_workers} of {cluster.min_workers} to {cluster.max_workers} "
        f"workers{remark}"
    )
    suffices = num_workers >= cluster.min_workers or not gpus
    return [Finding("cluster", text)], Capacity(name, resources, gpus, num_workers, suffices)


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
