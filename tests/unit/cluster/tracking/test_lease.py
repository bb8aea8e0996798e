"""Leases: liveness of drivers on this and other hosts, renewal and takeover."""

import json
import time
from dataclasses import asdict, replace

import pytest

from cluster.errors import TrackingError
from cluster.tracking import lease
from cluster.tracking.lease import LEASE_TAG, Lease, process_start
from cluster.tracking.runs import check_can_start
from tests.support.tracking import SETTINGS, begin, hand_over, status


@pytest.mark.parametrize("new_attempt", [False, True])
def test_name_with_a_live_driver_is_rejected_at_once(client, other_process, new_attempt):
    record = hand_over(client, other_process)
    began = time.monotonic()
    with pytest.raises(TrackingError, match=f"is running .process {other_process.pid} .*wait for"):
        begin(new_attempt=new_attempt).__enter__()
    with pytest.raises(TrackingError, match="is running"):
        check_can_start("digits", settings=SETTINGS, new_attempt=new_attempt)
    assert time.monotonic() - began < 5
    with begin("another"):
        assert status(client, record) == "RUNNING"


def test_run_of_a_killed_driver_is_marked_killed_by_the_next_run_of_any_name(client, other_process):
    record = hand_over(client, other_process)
    other_process.kill()  # not waited for yet: a zombie is no living driver
    while process_start(other_process.pid) is not None:
        time.sleep(0.01)
    with begin("another"):
        assert status(client, record) == "KILLED"
    with begin() as again:
        assert again.resumed
        assert again.run_id == record.run_id


def test_process_with_the_reused_pid_of_a_dead_driver_is_not_the_driver(client, other_process):
    record = hand_over(client, other_process)
    lease = Lease.of_run(client.get_run(record.run_id))
    assert lease is not None
    earlier = replace(lease, started=lease.started - 1)
    client.set_tag(record.run_id, LEASE_TAG, json.dumps(asdict(earlier)))
    with begin() as again:
        assert again.run_id == record.run_id


@pytest.mark.parametrize(("silence", "is_refused"), [(10, True), (200, False)])
def test_driver_on_another_host_counts_as_dead_without_recent_heartbeats(
    client, other_process, silence, is_refused
):
    record = hand_over(
        client, other_process, host="elsewhere/boot", last_heartbeat=time.time() - silence
    )
    if is_refused:
        with pytest.raises(TrackingError, match="on elsewhere"):
            begin().__enter__()
        assert status(client, record) == "RUNNING"
    else:
        with begin() as again:
            assert again.run_id == record.run_id


def test_live_driver_renews_its_lease(client, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    with begin() as record:
        first = Lease.of_run(client.get_run(record.run_id))
        deadline = time.monotonic() + 10
        while Lease.of_run(client.get_run(record.run_id)) == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_system_metrics_of_the_driver_are_logged(client, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    with begin() as record:
        deadline = time.monotonic() + 20
        while "system/cpu_utilization_percentage" not in client.get_run(record.run_id).data.metrics:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    metrics = client.get_run(record.run_id).data.metrics
    assert 0 < metrics["system/system_memory_usage_percentage"] < 100


def test_live_driver_corrects_a_run_state_of_killed(client, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    with begin() as record:
        client.set_terminated(record.run_id, "KILLED")
        deadline = time.monotonic() + 10
        while status(client, record) != "RUNNING":
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_driver_that_lost_its_lease_stops_and_keeps_the_run_state(client, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)
    taker = Lease.of_this_process()
    records = []
    with pytest.raises(TrackingError, match="digits was taken over"), begin() as record:  # noqa: PT012
        records.append(record)
        for _ in range(600):
            client.set_tag(record.run_id, LEASE_TAG, taker.to_json())
            time.sleep(0.1)
    assert status(client, records[0]) == "RUNNING"
    holder = Lease.of_run(client.get_run(records[0].run_id))
    assert holder is not None
    assert holder.token == taker.token
