"""Prometheus's own tool on the alert, and the dashboard."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import cluster.metrics

FOLDER = Path(__file__).parents[2] / "cluster" / "monitoring"


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's prometheus (make test)")
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")],
    ids=["configuration", "alert of a stalled run"],
)
def test_promtool_finds_nothing_wrong_with(arguments):
    outcome = subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_dashboard_and_the_alert_name_metrics_that_a_training_has():
    made = set(re.findall(r'"(ranet_\w+)"', Path(cluster.metrics.__file__).read_text()))
    panels = json.loads((FOLDER / "grafana.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    text = " ".join([*queries, (FOLDER / "alerts.yml").read_text()])
    asked = {name.removesuffix("_total") for name in re.findall(r"ray_(ranet_\w+)", text)}
    assert asked == made
