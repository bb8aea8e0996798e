"""Network interface of the workers on each node."""

import os
import socket
from unittest.mock import Mock

from ray.train.torch import TorchConfig

from cluster.execution.node.process_group import (
    INTERFACE,
    NodeInterfaceConfig,
    choose_interface,
    interface_of,
)


def test_gloo_uses_the_interface_of_the_node_address(monkeypatch):
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") == "lo"  # no interface has this IP address
    monkeypatch.setattr("os.environ", {})
    choose_interface()
    assert os.environ[INTERFACE] in {name for _, name in socket.if_nameindex()}


def test_interface_set_by_the_user_is_kept(monkeypatch):
    monkeypatch.setenv(INTERFACE, "eth7")
    choose_interface()
    assert os.environ[INTERFACE] == "eth7"


def test_workers_choose_their_interface_before_the_process_group_is_created(monkeypatch):
    calls = []
    rays = TorchConfig().backend_cls
    for name in ("on_start", "on_training_start", "on_shutdown"):
        monkeypatch.setattr(rays, name, lambda self, *_, name=name: calls.append(name))
    group = Mock()
    group.execute.side_effect = calls.append
    config = NodeInterfaceConfig()
    backend = config.backend_cls()
    assert backend.share_cuda_visible_devices is rays.share_cuda_visible_devices
    assert backend.has_replica_groups is rays.has_replica_groups
    backend.on_start(group, config)
    backend.on_training_start(group, config)
    backend.on_shutdown(group, config)
    assert calls == [choose_interface, "on_start", "on_training_start", "on_shutdown"]
