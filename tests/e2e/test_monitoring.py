"""Prometheus watching the cluster of several hosts, and what our dashboard and alert ask of it."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from cluster.local import LocalCluster, free_ports
from tests.e2e.jobs import Job
from tests.e2e.training import PROJECT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not shutil.which("prometheus"), reason="needs Debian's prometheus (make test)"
    ),
]

MONITORING = PROJECT / "cluster" / "monitoring"


class Prometheus:
    """Prometheus with our files, on the list of nodes that the cluster's head keeps."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        shutil.copytree(MONITORING, folder / "cluster" / "monitoring")
        (folder / "outputs" / "watch").mkdir(parents=True)
        nodes = Path(cluster.scratch) / "head" / "prom_metrics_service_discovery.json"
        (folder / "outputs" / "watch" / "nodes.json").symlink_to(nodes)
        [port] = free_ports("127.0.0.1", 1)
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={folder}/cluster/monitoring/prometheus.yml",
                 f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def ask(self, query: str) -> list[dict[str, Any]]:
        """Each series' labels and its value now."""
        try:
            answer = requests.get(f"{self.url}/api/v1/query", {"query": query}, timeout=10)
        except requests.ConnectionError:  # it is starting
            assert self.process.poll() is None, self.log.read_text()
            return []
        if answer.status_code == 503:
            return []
        assert answer.ok, f"{query}: {answer.text}"
        return answer.json()["data"]["result"]


@pytest.fixture
def prometheus(cluster: LocalCluster, tmp_path: Path) -> Iterator[Prometheus]:
    started = Prometheus(cluster, tmp_path / "watch")
    yield started
    started.process.terminate()
    started.process.wait(20)


def test_every_query_of_the_dashboard_is_answered_and_the_alert_sees_a_stalled_run(
    cluster, prometheus, tmp_path
):
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    elsewhere = {query for query in queries if "gpus" in query or "staged" in query}
    [group] = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    [alert] = [rule["expr"] for rule in group["rules"] if rule["alert"] == "RunStalled"]
    alert = alert.replace("[2m]", "[40s]")  # two looks of Prometheus: sooner than a person needs
    job = Job(cluster, tmp_path, "watched", "--train.epochs=100000", "--cluster.num_workers=2")
    try:
        unanswered = set(queries) - elsewhere

        def all_answered() -> bool:
            unanswered.difference_update({query for query in unanswered if prometheus.ask(query)})
            return not unanswered

        job.wait_until(all_answered)
        for query in elsewhere:  # no GPU here, and images on a disk: but Prometheus takes them
            assert prometheus.ask(query) == []
        [rate] = prometheus.ask(queries[0])
        assert rate["metric"]["run"].startswith("watched-1-")
        assert float(rate["value"][1]) > 0
        [wait] = prometheus.ask(next(query for query in queries if "wait" in query))
        assert 0 <= float(wait["value"][1]) <= 1
        assert prometheus.ask(alert) == []
        cluster.pause(*cluster.hosts)
        job.wait_until(lambda: prometheus.ask(alert))
        [stalled] = prometheus.ask(alert)
        assert stalled["metric"]["run"] == rate["metric"]["run"]
    finally:
        cluster.resume(*cluster.hosts)
        job.stop()
        job.wait()
