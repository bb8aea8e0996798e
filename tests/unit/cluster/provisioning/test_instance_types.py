"""Prices of instance types, and the prices stated in the cluster file."""

import re

import pytest

from cluster.provisioning.cluster_file import read_cluster_spec
from tests.unit.cluster.provisioning.definitions import read_config
from tests.unit.test_project import ROOT

IMAGENET_TRAIN = 1_281_167


def test_stated_prices_match_the_instance_types_and_the_cost_of_a_run():
    spec = read_cluster_spec(ROOT / "ray_cluster.yaml")
    on_demand, spot = spec.workers
    run = read_config("imagenet")
    eight = spec.dollars_per_hour(run.cluster, gpus=1, num_workers=8)
    scaling = (ROOT / "docs" / "scaling.md").read_text()
    rate = re.search(r"\| throughput of a GPU \| L4 (\d+), .* \| assumed \|", scaling)
    assert rate
    images = run.train.epochs * round(IMAGENET_TRAIN * (1 - run.data.validation_share))
    hours = images / (8 * int(rate[1])) / 3600
    text = " ".join((ROOT / "ray_cluster.yaml").read_text().replace("#", "").split())
    assert (
        f"the head {spec.head.dollars_per_hour:.2f}; a g6.12xlarge with its 4 GPUs "
        f"{on_demand.dollars_per_hour:.2f}, as a spot machine about {spot.dollars_per_hour:.2f}; "
        "the "
        f"head and 8 spot GPUs {eight:.2f}." in text
    )
    assert (
        f"A run of configs/imagenet.yaml: {hours:.1f} hours, {hours * eight:.0f} dollars (computed "
        f"for 8 spot GPUs at {rate[1]} images/s each, which is assumed: docs/scaling.md)." in text
    )
    assert f"| whole run at this throughput | {hours:.0f} h, ${hours * eight:.0f} on spot |" in (
        scaling
    )


def test_price_counts_each_node_once():
    spec = read_cluster_spec(ROOT / "ray_cluster.yaml")
    cluster = read_config("imagenet").cluster
    for num_workers, machines in ((1, 1), (4, 1), (5, 2), (8, 2)):
        price = spec.dollars_per_hour(cluster, gpus=1, num_workers=num_workers)
        assert price == pytest.approx(0.2016 + machines * 0.4 * 4.6016)
