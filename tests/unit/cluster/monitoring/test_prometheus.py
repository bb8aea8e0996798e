"""Prometheus configuration, alert rule and Grafana dashboard."""

import inspect
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import cluster.monitoring.prometheus
from tests.support.paths import PROJECT
from tests.support.private_apis import require_module

FOLDER = PROJECT / "cluster" / "monitoring"


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's prometheus (make test)")
@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")],
    ids=["configuration", "alert of a stalled run"],
)
def test_promtool_accepts(arguments, tmp_path):
    # In a separate folder: `make prometheus` may have left a link to a cluster that has ended.
    folder = shutil.copytree(FOLDER, tmp_path / "cluster" / "monitoring")
    result = subprocess.run(
        ["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_dashboard_and_alert_query_exactly_the_exported_metrics():
    exported = set(
        re.findall(r'"(ranet_\w+)"', Path(cluster.monitoring.prometheus.__file__).read_text())
    )
    panels = json.loads((FOLDER / "grafana.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    text = " ".join([*queries, (FOLDER / "alerts.yml").read_text()])
    queried = {name.removesuffix("_total") for name in re.findall(r"ray_(ranet_\w+)", text)}
    assert queried == exported


def test_dashboard_shows_utilization_and_memory_of_each_gpu_by_metrics_that_ray_exports():
    panels = json.loads((FOLDER / "grafana.json").read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    queried = {name for query in queries for name in re.findall(r"ray_(node_\w+)", query)}
    assert {"node_gpus_utilization", "node_gram_used", "node_gram_available"} <= queried
    reporter = "ray.dashboard.modules.reporter.reporter_agent"
    source = inspect.getsource(require_module(reporter, f"Ray has no {reporter}"))
    assert not [name for name in queried if f'"{name}": Gauge(' not in source]


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Debian's prometheus (make test)")
def test_finished_run_disappears_from_the_dashboard(tmp_path):
    # Ray continues to export the counters of finished workers, but not their gauges.
    panels = json.loads((FOLDER / "grafana.json").read_text())["panels"]
    queries = [
        target["expr"]
        for panel in panels
        for target in panel["targets"]
        if "(run" in target["expr"]
    ]
    counters = {name for query in queries for name in re.findall(r"ray_ranet_\w+_total", query)}
    value = "ray_ranet_epoch_value"
    labels = (("ray_ranet_run_active", ""), (value, ', metric="val/exit1/top1"'),
              (value, ', metric="val/loss"'))  # fmt: skip
    series = {f'{name}{{run="ended"}}': "0+60x10 600x30" for name in counters}
    series |= {f'{name}{{run="on"}}': "0+60x40" for name in counters}
    series |= {f'{name}{{run="ended"{more}}}': "1x10 stale" for name, more in labels}
    series |= {f'{name}{{run="on"{more}}}': "1x40" for name, more in labels}
    tests = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": name, "values": values} for name, values in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": f"count by (run) (({query}) >= 0)",
                        "eval_time": "9m",
                        "exp_samples": [{"labels": '{run="on"}', "value": 1}],
                    }
                    for query in queries
                ],
            }
        ],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    result = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "tests.yml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(queries) == 7
