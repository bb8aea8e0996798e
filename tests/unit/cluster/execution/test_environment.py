"""Environment of the workers."""

import socket

from cluster.config import ClusterConfig
from cluster.execution.environment import interface_of, worker_environment


def test_gloo_is_told_the_interface_of_the_address():
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") == "lo"  # nobody's
    names = {name for _, name in socket.if_nameindex()}
    assert worker_environment(ClusterConfig())["GLOO_SOCKET_IFNAME"] in names


def test_an_interface_that_the_user_chose_is_kept(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert "GLOO_SOCKET_IFNAME" not in worker_environment(ClusterConfig())
