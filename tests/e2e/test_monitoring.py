"""Prometheus on a cluster of several hosts: dashboard and alert."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from cluster.local.cluster import LocalCluster
from cluster.local.network import free_ports
from tests.support.jobs import Job
from tests.support.training import PROJECT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        not shutil.which("prometheus"), reason="needs Debian's prometheus (make test)"
    ),
]

MONITORING = PROJECT / "cluster" / "monitoring"


class Prometheus:
    """Prometheus with the project's files and the head's list of nodes.

    It looks more often than ours does, so that the test is short.
    """

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        shutil.copytree(MONITORING, folder / "cluster" / "monitoring")
        config = folder / "cluster" / "monitoring" / "prometheus.yml"
        config.write_text(config.read_text().replace("15s", "2s"))
        (folder / "outputs" / "prometheus").mkdir(parents=True)
        (folder / "outputs" / "prometheus" / "nodes.json").symlink_to(cluster.node_list)
        [port] = free_ports("127.0.0.1", 1)
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={config}",
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
    started = Prometheus(cluster, tmp_path / "prometheus")
    yield started
    started.process.terminate()
    started.process.wait(20)


def test_every_query_of_the_dashboard_has_data_and_the_alert_fires_for_a_stalled_run(
    cluster, prometheus, tmp_path
):
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    elsewhere = {query for query in queries if "node_g" in query or "staged" in query}
    [group] = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    [alert] = [rule["expr"] for rule in group["rules"] if rule["alert"] == "RunStalled"]
    alert = alert.replace("[2m]", "[40s]")  # sooner than a person needs
    job = Job(cluster, tmp_path, "watched", "--train.epochs=100000", "--cluster.num_workers=2")

    def ask(query: str) -> list[dict[str, Any]]:
        """Return the series of this run, or without a run.

        Ray still exports the counters of previous runs.
        """
        series = prometheus.ask(query)
        return [each for each in series if each["metric"].get("run", ours).startswith(ours)]

    ours = "watched-1-"
    try:
        unanswered = set(queries) - elsewhere

        def all_answered() -> bool:
            unanswered.difference_update({query for query in unanswered if ask(query)})
            return not unanswered

        job.wait_until(all_answered)
        for query in elsewhere:  # no GPU here, and images on a disk: but Prometheus takes them
            prometheus.ask(query)
        job.wait_until(lambda: [float(each["value"][1]) > 0 for each in ask(queries[0])] == [True])
        [wait] = ask(next(query for query in queries if "wait" in query))
        assert 0 <= float(wait["value"][1]) <= 1
        job.wait_until(lambda: ask(alert) == [])
        cluster.pause(*cluster.hosts)
        [stalled] = job.wait_until(lambda: ask(alert))
        assert stalled["metric"]["run"] == wait["metric"]["run"]
    finally:
        cluster.resume(*cluster.hosts)
        job.stop()
        job.wait()
