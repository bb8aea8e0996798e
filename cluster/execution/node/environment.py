"""Environment variables of the worker processes."""

import os
import time

from cluster.config import ClusterConfig

DEADLINE = "RANET_DEADLINE"
"""Time at which `cluster.max_hours` ends, in seconds since the epoch; absent without a limit."""
NCCL_SOCKETS = {"NCCL_SOCKET_NTHREADS": "4", "NCCL_NSOCKS_PERTHREAD": "4"}
"""Sockets of a connection between two nodes.

NCCL itself opens several only on a network card of AWS, not in a pod, and AWS limits each one.
"""


def worker_environment(cluster: ClusterConfig) -> dict[str, str]:
    """Return the environment variables that a worker needs before importing torch."""
    environment = {
        # A fixed number of threads: the order of summation, and so rounding, depends on the number.
        "OMP_NUM_THREADS": str(cluster.cpus_per_worker),
        # torch allocates huge pages: a CPU step of the CIFAR network becomes 6 to 15 % faster.
        "THP_MEM_ALLOC_ENABLE": "1",
    }
    environment |= {name: os.environ.get(name, value) for name, value in NCCL_SOCKETS.items()}
    if cluster.max_hours:
        environment[DEADLINE] = str(time.time() + cluster.max_hours * 3600)
    return environment
