"""Connection to a Ray cluster."""

import socket

import pytest

from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.execution.connection import connected


def test_a_ray_address_at_which_nobody_answers_is_refused_at_once(monkeypatch):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(RunError, match=rf"RAY_ADDRESS is {address}: no cluster answers"):
            connected(ClusterConfig()).__enter__()
