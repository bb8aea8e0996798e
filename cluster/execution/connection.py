"""Connect to a Ray cluster, or start a local one."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cluster.config import ClusterConfig
from cluster.environment import check_ray_settings
from cluster.errors import RunError


@contextmanager
def connected(cluster: ClusterConfig, *, oversubscribe: bool = True) -> Iterator[None]:
    """Connect to the cluster at RAY_ADDRESS, or start a local one.

    If this process is already connected, for example inside a Tune trial, that connection is used.

    Args:
        cluster: resources that a run requests.
        oversubscribe: give a local cluster `local_cpus` CPUs; otherwise only those of the machine.

    Raises:
        RunError: no cluster accepts connections at RAY_ADDRESS.
    """
    if ray.is_initialized():
        yield
        return
    check_ray_settings()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address := os.environ.get("RAY_ADDRESS"):
        _check_reachable(address)
        ray.init(logging_level=logging.ERROR)
    else:
        os.environ.setdefault(
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"
        )  # only cloud nodes are preempted
        ray.init(
            address="local",
            num_cpus=local_cpus(cluster) if oversubscribe else os.cpu_count(),
            # By default Ray reserves a third of the memory; the object store only holds settings.
            object_store_memory=100 << 20,
            include_dashboard=False,
            logging_level=logging.ERROR,
        )
    signal.signal(signal.SIGTERM, on_sigterm)  # ray.init installs its own handler
    try:
        yield
    finally:
        ray.shutdown()


def local_cpus(cluster: ClusterConfig) -> int:
    """Return the number of CPUs that a local cluster declares.

    The number is at least what the workers request: on a smaller machine they share its CPUs.
    """
    return max(cluster.max_workers * cluster.cpus_per_worker, os.cpu_count() or 1)


def _check_reachable(address: str) -> None:
    """Check that a HOST:PORT accepts connections."""
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdigit():  # for example "auto"
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"RAY_ADDRESS is {address}: no cluster answers there ({error}); start the cluster, "
            "correct RAY_ADDRESS, or unset RAY_ADDRESS to train on this machine only"
        ) from error
