"""Environment variables of the worker processes."""

import os

import psutil
import ray

from cluster.config import ClusterConfig


def worker_environment(cluster: ClusterConfig) -> dict[str, str]:
    """Return the environment variables that a worker needs before importing torch."""
    # A fixed number of threads: the order of summation, and so rounding, depends on the number.
    environment = {"OMP_NUM_THREADS": str(cluster.cpus_per_worker)}
    # torch allocates huge pages: a CPU step of the CIFAR network becomes 6 to 15 % faster.
    environment["THP_MEM_ALLOC_ENABLE"] = "1"
    if "GLOO_SOCKET_IFNAME" not in os.environ:
        # By default Gloo binds to the IP address of the hostname, often 127.0.0.1, which is not
        # the IP address under which the other workers connect to this one.
        address = ray.util.get_node_ip_address()
        environment["GLOO_SOCKET_IFNAME"] = interface_of(address)
    return environment


def interface_of(address: str) -> str:
    """Return the network interface with this IP address, or `lo`."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return "lo"
