"""Wrapper of the worker function."""

from unittest.mock import Mock

import pytest

from cluster.execution.heartbeat import Heartbeats
from cluster.execution.worker import run_worker


def test_unexpected_worker_error_is_logged_with_its_traceback(caplog, monkeypatch):
    monkeypatch.setattr("ray.train.get_context", lambda: Mock(**{"get_world_rank.return_value": 1}))

    def fail(task):
        raise task

    for error in (KeyError("a bug"), ValueError("of the user")):
        with pytest.raises(type(error)):
            run_worker(fail, error, Heartbeats(None), "run")
    assert "Traceback" in caplog.text
    assert "KeyError: 'a bug'" in caplog.text
    assert "of the user" not in caplog.text
