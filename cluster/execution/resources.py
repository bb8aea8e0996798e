"""Resources of the workers, and the capacity of the cluster for them."""

import logging
import os
import time

import ray
from ray.autoscaler.sdk import request_resources

from cluster.config import ClusterConfig
from cluster.errors import RunError

logger = logging.getLogger(__name__)


def wants_gpu(cluster: ClusterConfig) -> bool:
    """Decide `cluster.device` auto by the GPUs that Ray has."""
    if cluster.device == "auto":
        needed = cluster.min_workers * cluster.gpus_per_worker
        return ray.cluster_resources().get("GPU", 0) >= needed
    return cluster.device == "gpu"


def worker_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Return what a worker asks of Ray."""
    gpu = {"GPU": cluster.gpus_per_worker} if wants_gpu(cluster) else {}
    return {"CPU": float(cluster.cpus_per_worker), **gpu}


def capacity_for(cluster: ClusterConfig) -> int:
    """Return how many runs' workers Ray has room for now, all nodes together; 0: not for one."""
    needs = worker_resources(cluster)
    workers = sum(
        int(min((node["Resources"].get(name, 0) + 1e-6) // each for name, each in needs.items()))
        for node in ray.nodes()
        if node["Alive"]
    )
    return max(workers // cluster.max_workers, int(workers >= cluster.min_workers))


def check_capacity(cluster: ClusterConfig) -> None:
    """Refuse a run that the cluster has no room for; one that may grow is asked to, and waited for.

    Raises:
        RunError: the workers of a single run do not fit within `cluster.start_timeout_seconds`, or,
            on a cluster of this process's own, at all.
    """
    deadline = time.monotonic() + cluster.start_timeout_seconds
    may_grow = "RAY_ADDRESS" in os.environ
    if capacity_for(cluster):
        return
    if may_grow:
        logger.warning("no room for the workers of a run yet, waiting for nodes")
        request_resources(bundles=[worker_resources(cluster)] * cluster.min_workers)
    while may_grow and not capacity_for(cluster) and time.monotonic() < deadline:
        time.sleep(1.0)
    if may_grow:
        request_resources(bundles=[])
    if not capacity_for(cluster):
        raise RunError(no_capacity_message(cluster))


def no_workers_message(cluster: ClusterConfig) -> str:
    """Describe a run whose workers did not start in time."""
    return (
        f"{_workers(cluster)} did not start within cluster.start_timeout_seconds = "
        f"{cluster.start_timeout_seconds:g}: {_whole_cluster()}; ask for less or add nodes, and "
        "start the run again"
    )


def no_capacity_message(cluster: ClusterConfig) -> str:
    """Describe a cluster that is too small for the workers of a run."""
    return (
        f"cluster.num_workers asks for {_workers(cluster)}, which is more than the cluster has: "
        f"{_whole_cluster()} on {sum(node['Alive'] for node in ray.nodes())} nodes; ask for less "
        "or add nodes"
    )


def _workers(cluster: ClusterConfig) -> str:
    gpu = f" and {cluster.gpus_per_worker:g} GPU" if wants_gpu(cluster) else ""
    return f"{cluster.min_workers} workers with {cluster.cpus_per_worker} CPUs{gpu} each"


def _whole_cluster() -> str:
    has = ray.cluster_resources()
    return f"the cluster has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
