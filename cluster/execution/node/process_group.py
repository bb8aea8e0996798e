"""Process group of the workers, each on its node's network interface."""

import os
from typing import Any

import psutil
import ray
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable with the interface that Gloo binds to."""


class NodeInterfaceBackend(Backend):
    """Ray's backend for torch, after a choice of interface on each node.

    Interfaces have other names on other types of machines: the name that suits the driver's node
    does not suit the workers.
    """

    share_cuda_visible_devices = True  # as Ray's backend

    def __init__(self) -> None:
        self._torch = TorchConfig().backend_cls()

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Choose interfaces, then create the process group."""
        worker_group.execute(choose_interface)
        self._torch.on_start(worker_group, backend_config)

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        """Pass the call to Ray's backend."""
        self._torch.on_training_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
        """Pass the call to Ray's backend."""
        self._torch.on_shutdown(worker_group, backend_config)


class NodeInterfaceConfig(TorchConfig):
    """Ray's settings of a torch process group, with `NodeInterfaceBackend`."""

    @property
    # Ray annotates the property with its private class, and uses the methods of `Backend` only.
    def backend_cls(self) -> type[Backend]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Class of the backend."""
        return NodeInterfaceBackend


def choose_interface() -> None:
    """Let Gloo use the interface of this node, unless one is set.

    By default Gloo binds to the IP address of the hostname, often 127.0.0.1; the other workers
    connect to the IP address of the Ray node.
    """
    os.environ.setdefault(INTERFACE, interface_of(ray.util.get_node_ip_address()))


def interface_of(address: str) -> str:
    """Return the network interface with this IP address, or `lo`."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return "lo"
