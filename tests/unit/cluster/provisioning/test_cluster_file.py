"""Cluster file: reading, and checks of the requests of runs."""

from dataclasses import replace

import pytest
import yaml

from cluster.cli import parse_settings
from cluster.provisioning.cluster_file import read_cluster_spec
from pipelines.run import Run
from tests.unit.cluster.provisioning.definitions import IMAGENET_BYTES, read_config, read_sweep
from tests.unit.test_project import ROOT

GPU_CONFIGS = ("cifar10", "imagenet", "imagenet_paper", "sweeps/cifar10")


def written(tmp_path, aws):
    path = tmp_path / "ray_cluster.yaml"
    path.write_text(yaml.safe_dump(aws))
    return path


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_every_gpu_config_finds_its_workers_and_room_for_its_images(name):
    cluster = read_sweep(name).cluster if name.startswith("sweeps") else read_config(name).cluster
    offer = read_cluster_spec(ROOT / "ray_cluster.yaml")
    assert offer.lacks(cluster, gpus=1, cache_bytes=IMAGENET_BYTES) == []
    on_demand = [group for group in offer.workers if not group.is_spot]
    room = sum(group.max_workers * group.room(cluster.cpus_per_worker, 1) for group in on_demand)
    assert room >= cluster.min_workers, "a run must be able to live without any spot machine"


def test_a_resource_that_the_machine_lacks_is_named(aws, tmp_path):
    aws["available_node_types"]["gpu_worker"]["resources"]["GPU"] = 5
    with pytest.raises(
        ValueError, match=r"gpu_worker.resources promises GPU: 5, but a g6.12xlarge has 4"
    ):
        read_cluster_spec(written(tmp_path, aws))


@pytest.mark.parametrize("count", [-1, "four", 0.5, None])
def test_a_resource_that_is_no_number_of_things_is_named(aws, tmp_path, count):
    aws["available_node_types"]["gpu_worker"]["resources"]["GPU"] = count
    with pytest.raises(
        ValueError, match=f"gpu_worker.resources.GPU must be 0 or more, got {count!r}"
    ):
        read_cluster_spec(written(tmp_path, aws))


@pytest.mark.parametrize("content", [None, [], {"head_node_type": "a", "available_node_types": []}])
def test_a_file_of_another_kind_is_refused_as_a_cluster_file(tmp_path, content):
    with pytest.raises(ValueError, match=r"ray_cluster.yaml is no cluster file as Ray describes"):
        read_cluster_spec(written(tmp_path, content))


def test_a_misspelt_resource_is_named_with_what_was_meant(aws, tmp_path):
    resources = aws["available_node_types"]["gpu_worker"]["resources"]
    resources["gpus"] = resources.pop("GPU")
    with pytest.raises(ValueError, match=r"resources has gpus, .*; did you mean GPU\?"):
        read_cluster_spec(written(tmp_path, aws))


def test_an_unknown_machine_a_missing_file_and_a_missing_part_are_named(aws, tmp_path):
    aws["available_node_types"]["head"]["node_config"]["InstanceType"] = "m99.huge"
    with pytest.raises(ValueError, match=r"head.node_config.InstanceType is m99.huge"):
        read_cluster_spec(written(tmp_path, aws))
    del aws["head_node_type"]
    with pytest.raises(ValueError, match=r"ray_cluster.yaml has no 'head_node_type'"):
        read_cluster_spec(written(tmp_path, aws))
    with pytest.raises(ValueError, match="no such cluster file"):
        read_cluster_spec(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_workers": "two"}, "max_workers: 'two' is not of type 'integer'"),
        ({"max_worker": 2}, "its first level: .*'max_worker' was unexpected"),
        ({"max_workers": 1}, "`max_workers` is smaller than the sum of `min_workers`"),
    ],
)
def test_what_ray_would_refuse_is_refused_before_it_is_started(aws, tmp_path, change, sentence):
    aws["available_node_types"]["gpu_worker"]["min_workers"] = 2
    with pytest.raises(ValueError, match=rf"ray_cluster.yaml is refused by Ray\b.*{sentence}"):
        read_cluster_spec(written(tmp_path, aws | change))


def test_what_a_run_would_lack_is_said_before_anything_is_rented():
    offer = read_cluster_spec(ROOT / "ray_cluster.yaml")

    def lacks(*arguments, cache_bytes=0):
        config = parse_settings(Run, ["--train.batch_size=64", *arguments]).cluster
        return offer.lacks(config, gpus=1, cache_bytes=cache_bytes)

    assert lacks("--cluster.num_workers=8", "--cluster.cpus_per_worker=8") == []
    [many] = lacks("--cluster.num_workers=[2,9]")
    assert "asks for up to 9 workers of 1 CPUs and 1 GPU, but" in many
    assert "has room for 8; raise max_workers there" in many
    few = replace(offer, max_workers=0).lacks(read_config("imagenet").cluster, gpus=1)
    assert ["has room for 0; raise max_workers there" in sentence for sentence in few] == [True]
    [wide] = lacks("--cluster.cpus_per_worker=49")
    assert "no machine of" in wide
    [large] = lacks("--cluster.num_workers=2", cache_bytes=10**12)
    assert "1000 GB of images do not fit the disk of spot_gpu_worker" in large
