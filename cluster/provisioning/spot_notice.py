"""Drain this Ray node after EC2's notice of an interruption.

    nohup setsid python spot_notice.py &

Runs on every worker node, outside of Ray. Ray itself does not read EC2's notice. Until a notice
arrives the process imports the standard library only.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

logger = logging.getLogger("spot_notice")

POLL_SECONDS = 5.0
"""Interval between two requests, as AWS recommends."""
NOTICE_SECONDS = 120.0
"""Time between EC2's notice and the interruption."""
REQUEST_SECONDS = 2.0
"""Timeout of a request to the metadata service, which runs on the same machine."""
_TOKEN_PATH = "/latest/api/token"
_NOTICE_PATH = "/latest/meta-data/spot/instance-action"


def main() -> None:
    """Poll the metadata service until this node is drained."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--node-ip-address", help="IP address of the Ray node; default: detected by Ray"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    last_problem = ""
    while True:
        try:
            deadline = fetch_deadline()
            if deadline is not None:
                drain_own_node(deadline - time.time(), options.node_ip_address)
                return
            problem = ""
        except Exception as error:  # Ray or the metadata service may answer again
            problem = f"{type(error).__name__}: {error}"
        if problem and problem != last_problem:
            logger.warning("%s; trying again every %g seconds", problem, POLL_SECONDS)
        last_problem = problem
        time.sleep(POLL_SECONDS)


def fetch_deadline() -> float | None:
    """Return the announced time of this instance's interruption.

    Reads version 2 of EC2's metadata service. AWS_EC2_METADATA_SERVICE_ENDPOINT replaces the URL of
    the service, as in AWS's own clients.

    Returns:
        Seconds since the epoch; None without a notice, always so on an on-demand instance.

    Raises:
        OSError, ValueError: the service does not answer, or the notice has another format.
    """
    token = _request("PUT", _TOKEN_PATH, {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    try:
        notice = _request("GET", _NOTICE_PATH, {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return datetime.fromisoformat(json.loads(notice)["time"]).timestamp()


def _request(method: str, path: str, headers: Mapping[str, str]) -> str:
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
    request = urllib.request.Request(
        endpoint.rstrip("/") + path, headers=dict(headers), method=method
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=REQUEST_SECONDS) as answer:
        return answer.read().decode()


def drain_own_node(seconds: float, node_ip_address: str | None = None) -> None:
    """Announce the preemption of this node to Ray.

    Ray Train then asks the workers for a checkpoint and restarts them on the other nodes.

    Args:
        seconds: time until the node is lost.
        node_ip_address: IP address of the node; None: detected by Ray.

    Raises:
        ConnectionError, subprocess.SubprocessError: Ray does not run on this node, or rejects the
            request.
    """
    import ray  # 100 MB, which is needed only once a notice has arrived

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    try:
        address = ray.get_runtime_context().gcs_address
        own = node_ip_address or ray.util.get_node_ip_address()
        [node] = [
            node["NodeID"]
            for node in ray.nodes()
            if node["Alive"] and node["NodeManagerAddress"] == own
        ]
    finally:
        ray.shutdown()
    subprocess.run(
        [Path(sys.executable).with_name("ray"), "drain-node", "--address", address,
         "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION",
         "--reason-message", "spot instance interruption notice",
         "--deadline-remaining-seconds", str(max(round(seconds), 0))],
        check=True, timeout=60,
    )  # fmt: skip
    logger.info("drained node %s, which is lost in %.0f seconds", node, seconds)


if __name__ == "__main__":
    main()
