"""Parsing of the cluster file, and checks of runs against it."""

from dataclasses import replace

import pytest
import yaml

from cluster.cli import parse_settings
from cluster.provisioning.cluster_file import read_cluster_spec
from pipelines.run import Run
from tests.unit.cluster.provisioning.definitions import IMAGENET_BYTES, read_config, read_sweep
from tests.unit.test_project import ROOT

GPU_CONFIGS = ("cifar10", "imagenet", "imagenet_paper", "sweeps/cifar10")


def write_cluster_file(tmp_path, aws):
    path = tmp_path / "ray_cluster.yaml"
    path.write_text(yaml.safe_dump(aws))
    return path


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_cluster_file_satisfies_the_request_and_images_of_a_gpu_config(name):
    cluster = read_sweep(name).cluster if name.startswith("sweeps") else read_config(name).cluster
    spec = read_cluster_spec(ROOT / "ray_cluster.yaml")
    assert spec.problems(cluster, gpus=1, cache_bytes=IMAGENET_BYTES) == []
    on_demand = [group for group in spec.workers if not group.is_spot]
    capacity = sum(
        group.max_workers * group.capacity(cluster.cpus_per_worker, 1) for group in on_demand
    )
    assert capacity >= cluster.min_workers, "a run must fit the on-demand nodes alone"


def test_resource_above_that_of_the_instance_type_is_rejected(aws, tmp_path):
    aws["available_node_types"]["gpu_worker"]["resources"]["GPU"] = 5
    with pytest.raises(
        ValueError, match=r"gpu_worker.resources declares GPU: 5, but a g6.12xlarge has 4"
    ):
        read_cluster_spec(write_cluster_file(tmp_path, aws))


@pytest.mark.parametrize("count", [-1, "four", 0.5, None])
def test_resource_that_is_no_count_is_rejected(aws, tmp_path, count):
    aws["available_node_types"]["gpu_worker"]["resources"]["GPU"] = count
    with pytest.raises(
        ValueError, match=f"gpu_worker.resources.GPU must be 0 or more, got {count!r}"
    ):
        read_cluster_spec(write_cluster_file(tmp_path, aws))


@pytest.mark.parametrize("content", [None, [], {"head_node_type": "a", "available_node_types": []}])
def test_file_that_is_no_cluster_file_is_rejected(tmp_path, content):
    with pytest.raises(ValueError, match=r"ray_cluster.yaml is not a cluster file of Ray"):
        read_cluster_spec(write_cluster_file(tmp_path, content))


def test_misspelt_resource_is_rejected_with_a_suggestion(aws, tmp_path):
    resources = aws["available_node_types"]["gpu_worker"]["resources"]
    resources["gpus"] = resources.pop("GPU")
    with pytest.raises(ValueError, match=r"resources has gpus, .*; did you mean GPU\?"):
        read_cluster_spec(write_cluster_file(tmp_path, aws))


def test_unknown_instance_type_missing_key_and_missing_file_are_rejected(aws, tmp_path):
    aws["available_node_types"]["head"]["node_config"]["InstanceType"] = "m99.huge"
    with pytest.raises(ValueError, match=r"head.node_config.InstanceType is m99.huge"):
        read_cluster_spec(write_cluster_file(tmp_path, aws))
    del aws["head_node_type"]
    with pytest.raises(ValueError, match=r"ray_cluster.yaml has no 'head_node_type'"):
        read_cluster_spec(write_cluster_file(tmp_path, aws))
    with pytest.raises(ValueError, match="no such cluster file"):
        read_cluster_spec(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_workers": "two"}, "max_workers: 'two' is not of type 'integer'"),
        ({"max_worker": 2}, "top level: .*'max_worker' was unexpected"),
        ({"max_workers": 1}, "`max_workers` is smaller than the sum of `min_workers`"),
    ],
)
def test_cluster_file_that_ray_rejects_is_rejected_before_a_start(aws, tmp_path, change, message):
    aws["available_node_types"]["gpu_worker"]["min_workers"] = 2
    with pytest.raises(ValueError, match=rf"ray_cluster.yaml is rejected by Ray\b.*{message}"):
        read_cluster_spec(write_cluster_file(tmp_path, aws | change))


def test_problems_describe_why_a_run_does_not_fit_the_cluster():
    spec = read_cluster_spec(ROOT / "ray_cluster.yaml")

    def problems(*arguments, cache_bytes=0):
        config = parse_settings(Run, ["--train.batch_size=64", *arguments]).cluster
        return spec.problems(config, gpus=1, cache_bytes=cache_bytes)

    assert problems("--cluster.num_workers=8", "--cluster.cpus_per_worker=8") == []
    [many] = problems("--cluster.num_workers=[2,13]")
    assert "requests up to 13 workers of 1 CPUs and 1 GPU, but" in many
    assert "has capacity for 12; increase max_workers there" in many
    few = replace(spec, max_workers=0).problems(read_config("imagenet").cluster, gpus=1)
    assert ["has capacity for 0; increase max_workers there" in sentence for sentence in few] == [
        True
    ]
    [wide] = problems("--cluster.cpus_per_worker=49")
    assert "no node type of" in wide
    [large] = problems("--cluster.num_workers=2", cache_bytes=10**12)
    assert "1000 GB of images do not fit the disk of spot_gpu_worker" in large


def test_nodes_are_counted_and_spot_nodes_come_first():
    spec = read_cluster_spec(ROOT / "ray_cluster.yaml")
    cluster = read_config("imagenet").cluster
    for num_workers, machines in ((1, 1), (4, 1), (5, 2), (8, 2), (9, 3)):
        assert spec.num_nodes(cluster, gpus=1, num_workers=num_workers) == machines
    kinds = [node.is_spot for node in spec.worker_nodes(cluster, gpus=1)]
    assert kinds == [True] * 8 + [False] * 4


def test_cpus_have_a_node_type_without_gpu():
    spec = read_cluster_spec(ROOT / "ray_cluster.yaml")
    [cpu] = [group for group in spec.workers if not group.resources.get("GPU")]
    assert cpu.capacity(1, 0) == cpu.machine.cpus
    assert cpu.machine.gpus == 0
    assert cpu.machine.cache_gb * 1e9 > IMAGENET_BYTES
