"""Environment variables of the workers."""

import socket

from cluster.config import ClusterConfig
from cluster.execution.environment import interface_of, worker_environment


def test_gloo_uses_the_interface_of_the_node_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") == "lo"  # no interface has this IP address
    names = {name for _, name in socket.if_nameindex()}
    assert worker_environment(ClusterConfig())["GLOO_SOCKET_IFNAME"] in names


def test_interface_set_by_the_user_is_kept(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert "GLOO_SOCKET_IFNAME" not in worker_environment(ClusterConfig())
