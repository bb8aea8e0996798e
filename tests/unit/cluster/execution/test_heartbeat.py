"""Heartbeats of the workers."""

import math

from cluster.execution.heartbeat import HeartbeatActor


def test_a_watch_knows_each_run_and_that_any_lives():
    watch = HeartbeatActor()
    assert watch.look("a")[2] == 0
    watch.beat("b", 2)
    anybody, own, _ = watch.look("a")
    assert anybody < 1
    assert own == math.inf
    assert watch.look("b")[2] == 2
