"""Heartbeats of the workers."""

import math

from cluster.execution.heartbeat import HeartbeatActor


def test_status_reports_the_last_heartbeat_of_any_run_and_of_one_run():
    heartbeats = HeartbeatActor()
    assert heartbeats.status("a")[2] == 0
    heartbeats.beat("b", 2)
    any_age, own_age, _ = heartbeats.status("a")
    assert any_age < 1
    assert own_age == math.inf
    assert heartbeats.status("b")[2] == 2
