"""Environment variables of the workers."""

import time

import pytest

from cluster.config import ClusterConfig
from cluster.execution.node.environment import DEADLINE, worker_environment


def test_nccl_opens_several_sockets_unless_the_user_sets_their_number(monkeypatch):
    assert worker_environment(ClusterConfig())["NCCL_NSOCKS_PERTHREAD"] == "4"
    monkeypatch.setenv("NCCL_NSOCKS_PERTHREAD", "2")
    environment = worker_environment(ClusterConfig())
    assert environment["NCCL_NSOCKS_PERTHREAD"] == "2"
    assert environment["NCCL_SOCKET_NTHREADS"] == "4"


def test_workers_get_the_time_at_which_a_limited_run_stops():
    assert DEADLINE not in worker_environment(ClusterConfig())
    environment = worker_environment(ClusterConfig(max_hours=2))
    assert float(environment[DEADLINE]) == pytest.approx(time.time() + 7200, abs=5)
