"""Connection to a Ray cluster."""

import socket

import pytest

from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.execution.connection import connected


def test_unreachable_ray_address_fails_at_once(monkeypatch):
    with socket.socket() as bound:  # bound, but not listening
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RunError, match=rf"RAY_ADDRESS is {address}: no cluster answers"):
            connected(ClusterConfig()).__enter__()
