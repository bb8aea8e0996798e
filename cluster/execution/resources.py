"""Resource requests of workers, and the capacity of the cluster."""

import logging
import os
import time

import ray
from ray.autoscaler.sdk import request_resources

from cluster.config import ClusterConfig
from cluster.errors import RunError

logger = logging.getLogger(__name__)


def wants_gpu(cluster: ClusterConfig) -> bool:
    """Return whether workers use GPUs."""
    if cluster.device == "auto":
        needed = cluster.min_workers * cluster.gpus_per_worker
        return ray.cluster_resources().get("GPU", 0) >= needed
    return cluster.device == "gpu"


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Return the resource request of a worker, as Ray spells it."""
    gpu = {"GPU": cluster.gpus_per_worker} if wants_gpu(cluster) else {}
    return {"CPU": float(cluster.cpus_per_worker), **gpu}


def capacity_for(cluster: ClusterConfig) -> int:
    """Return the number of runs that fit the cluster in parallel."""
    request = worker_resources(cluster)
    workers = sum(
        int(
            min((node["Resources"].get(name, 0) + 1e-6) // count for name, count in request.items())
        )
        for node in ray.nodes()
        if node["Alive"]
    )
    return max(workers // cluster.max_workers, int(workers >= cluster.min_workers))


def check_capacity(cluster: ClusterConfig) -> None:
    """Check that the cluster has, or gets, capacity for a run.

    Raises:
        RunError: the cluster has no capacity for one run. On a local cluster the error is raised at
            once, otherwise after `cluster.start_timeout_seconds`.
    """
    deadline = time.monotonic() + cluster.start_timeout_seconds
    may_grow = bool(os.environ.get("RAY_ADDRESS"))
    if capacity_for(cluster):
        return
    if may_grow:
        logger.warning("no capacity for the workers of a run yet; waiting for nodes")
        request_resources(bundles=[worker_resources(cluster)] * cluster.min_workers)
    while may_grow and not capacity_for(cluster) and time.monotonic() < deadline:
        time.sleep(1.0)
    if may_grow:
        request_resources(bundles=[])
    if not capacity_for(cluster):
        raise RunError(no_capacity_message(cluster))


def no_workers_message(cluster: ClusterConfig) -> str:
    """Return the error message for workers that did not start in time."""
    return (
        f"{_workers(cluster)} did not start within cluster.start_timeout_seconds = "
        f"{cluster.start_timeout_seconds:g}: {_cluster_resources(cluster)}; "
        "request fewer resources or add nodes, and start the run again"
    )


def no_capacity_message(cluster: ClusterConfig) -> str:
    """Return the error message for a cluster that is too small."""
    return (
        f"cluster.num_workers requests {_workers(cluster)}, which exceeds the capacity: "
        f"{_cluster_resources(cluster)} on {sum(node['Alive'] for node in ray.nodes())} nodes; "
        "request fewer resources or add nodes"
    )


def _workers(cluster: ClusterConfig) -> str:
    gpu = f" and {cluster.gpus_per_worker:g} GPU" if wants_gpu(cluster) else ""
    return f"{cluster.min_workers} workers with {cluster.cpus_per_worker} CPUs{gpu} each"


def _cluster_resources(cluster: ClusterConfig) -> str:
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0)
    hint = (
        "" if gpus or not wants_gpu(cluster)
        else " (Kubernetes has GPUs only while NVIDIA's device plugin runs)"
    )  # fmt: skip
    return f"the cluster has {resources.get('CPU', 0):g} CPUs and {gpus:g} GPUs{hint}"
