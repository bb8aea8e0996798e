"""Poller of spot notices, against a stand-in for EC2's metadata service."""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from threading import Thread

import pytest

from cluster.local.metadata_service import NOTICE_PATH, create_server
from cluster.provisioning import spot_notice

TERMINATE = {"action": "terminate", "time": "2026-11-05T18:02:00Z"}


@pytest.fixture
def notice(tmp_path, monkeypatch):
    """File with the notice that the metadata service of this process serves."""
    path = tmp_path / "notice.json"
    with create_server("127.0.0.1", 0, path) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint)
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be used
        yield path
        server.shutdown()


@pytest.fixture
def drained(monkeypatch):
    """Remaining seconds of each drain; the first drain fails."""
    found = []

    def drain(seconds, node_ip_address=None):
        found.append(seconds)
        if len(found) == 1:
            raise ConnectionError("no Ray node")

    monkeypatch.setattr(spot_notice, "drain_own_node", drain)
    monkeypatch.setattr(spot_notice, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(sys, "argv", ["spot_notice.py"])
    return found


def test_notice_gives_the_time_of_the_interruption(notice):
    assert spot_notice.fetch_deadline() is None
    notice.write_text(json.dumps(TERMINATE))
    assert spot_notice.fetch_deadline() == 1793901720


def test_metadata_service_rejects_requests_without_a_token(notice, monkeypatch):
    monkeypatch.delenv("http_proxy")
    endpoint = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
    with pytest.raises(urllib.error.HTTPError, match="401") as rejected:
        urllib.request.urlopen(endpoint + NOTICE_PATH)
    rejected.value.close()


def test_node_is_drained_once_and_again_only_after_a_failure(notice, drained):
    poller = Thread(target=spot_notice.main)
    poller.start()
    time.sleep(0.2)
    assert poller.is_alive()
    assert not drained
    loss = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 100))
    notice.write_text(json.dumps({"action": "terminate", "time": loss}))
    poller.join(10)
    assert not poller.is_alive()
    assert drained == pytest.approx([100, 100], abs=5)


def test_poller_survives_a_metadata_service_that_does_not_answer(notice, drained, monkeypatch):
    endpoint = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    notice.write_text(json.dumps(TERMINATE))
    poller = Thread(target=spot_notice.main)
    poller.start()
    time.sleep(0.2)
    assert not drained
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint)
    poller.join(10)
    assert len(drained) == 2
