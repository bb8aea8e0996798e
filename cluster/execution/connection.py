"""Connect to a Ray cluster, or start a local one."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from cluster.config import ClusterConfig
from cluster.errors import RunError


@contextmanager
def connected(cluster: ClusterConfig, *, crowded: bool = True) -> Iterator[None]:
    """Connect to the cluster that RAY_ADDRESS names, or start a local one for this context.

    Where Ray is connected already, as inside a Tune trial, nothing is done.

    Args:
        cluster: what a run asks for.
        crowded: a local cluster is told of `local_cpus`; otherwise of this machine's alone.

    Raises:
        RunError: nobody answers at that address.
    """
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address := os.environ.get("RAY_ADDRESS"):
        _check_answers(address)
        ray.init(logging_level=logging.ERROR)
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this node
        ray.init(
            address="local",
            num_cpus=local_cpus(cluster) if crowded else os.cpu_count(),
            # Ray would claim a third of the memory; only settings pass through the object store.
            object_store_memory=100 << 20,
            include_dashboard=False,
            logging_level=logging.ERROR,
        )
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray put its own handler there
    try:
        yield
    finally:
        ray.shutdown()


def local_cpus(cluster: ClusterConfig) -> int:
    """Return the CPUs that a local cluster is told of.

    They are as many as the workers ask for, who share this machine's where it has fewer.
    """
    return max(cluster.max_workers * cluster.cpus_per_worker, os.cpu_count() or 1)


def _check_answers(address: str) -> None:
    """Refuse a HOST:PORT at which nobody listens: Ray would go on trying for many minutes."""
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdigit():  # such as auto
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"RAY_ADDRESS is {address}: no cluster answers there ({error}); start it, correct the "
            "address, or unset RAY_ADDRESS to train on this machine alone"
        ) from error
