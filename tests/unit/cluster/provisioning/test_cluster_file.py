"""The files that describe clusters agree with each other, with the configs, and with Ray."""

import copy
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.cli import parse_settings
from cluster.provisioning.cluster_file import read_cluster_spec
from cluster.provisioning.instance_types import INSTANCE_TYPES
from pipelines.run import Run
from tests.unit.test_project import PROJECT, ROOT, pinned_versions
from tuning.config import Sweep
from tuning.space import as_arguments

GPU_CONFIGS = ("cifar10", "imagenet", "imagenet_paper", "sweeps/cifar10")
IMAGENET_TRAIN = 1_281_167
IMAGENET_BYTES = 1_331_167 * 58_000
"""What nodes copy of ImageNet: JPEG 90 of 421 px is 43 KB (docs/results.md), here scaled to the
default of 500 px by area."""
KUBERAY_FIELDS = {  # of ray.io/v1, by KubeRay's own types: docs/decisions/011
    "RayCluster": {
        "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions",
        "gcsFaultToleranceOptions", "headGroupSpec", "workerGroupSpecs",
    },
    "RayJob": {
        "entrypoint", "runtimeEnvYAML", "backoffLimit", "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished", "rayClusterSpec",
    },
    "autoscalerOptions": {
        "resources", "image", "imagePullPolicy", "env", "envFrom", "volumeMounts",
        "securityContext", "idleTimeoutSeconds", "upscalingMode",
    },
    "gcsFaultToleranceOptions": {
        "redisAddress", "redisPassword", "redisUsername", "externalStorageNamespace",
    },
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpec": {
        "groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template",
    },
}  # fmt: skip


@pytest.fixture
def aws():
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


def kuberay(name):
    return yaml.safe_load(
        (ROOT / "cluster" / "provisioning" / "kuberay" / f"{name}.yaml").read_text()
    )


def read_config(name):
    return parse_settings(Run, ["--config", str(ROOT / "configs" / f"{name}.yaml")])


def read_sweep(name):
    """The run that the trials of a sweep start from."""
    sweep = parse_settings(Sweep, ["--config", str(ROOT / "configs" / f"{name}.yaml")])
    return parse_settings(
        Run, ["--config", str(ROOT / sweep.base_config), *as_arguments(sweep.overrides)]
    )


def written(tmp_path, aws):
    path = tmp_path / "ray_cluster.yaml"
    path.write_text(yaml.safe_dump(aws))
    return path


def groups_of(spec):
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_ray_accepts_the_cluster_file(aws):
    validate_config(prepare_config(aws))


def test_all_nodes_run_one_image_of_the_pinned_ray(aws):
    image = aws["docker"]["image"]
    version = pinned_versions()["ray"]
    assert re.fullmatch(rf"[\w.:/-]+/ranet:ray{re.escape(version)}", image)  # with any registry
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert dockerfile.count(f"REGISTRY/ranet:ray{version}") == 2  # commands that build and push it
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py3(\d+)-gpu$", dockerfile, re.MULTILINE)
    assert base
    assert base[1] == version
    assert f"3.{base[2]}" in SpecifierSet(PROJECT["requires-python"])
    for spec in (kuberay("raycluster")["spec"], kuberay("rayjob")["spec"]["rayClusterSpec"]):
        assert spec["rayVersion"] == version
        for group in groups_of(spec):
            assert [each["image"] for each in group["template"]["spec"]["containers"]] == [image]


def test_a_node_asks_for_a_token_and_no_file_has_it(aws):
    assert "--env RAY_AUTH_MODE=token" in aws["docker"]["run_options"]
    for commands in (aws["head_start_ray_commands"], aws["worker_start_ray_commands"]):
        stop, token, start = commands
        assert stop == "ray stop"
        assert 'SecretId="ranet/ray-token"' in token
        assert token.endswith("> $RAY_AUTH_TOKEN_PATH")
        assert start.startswith("ray start ")
    [path] = [each for each in aws["docker"]["run_options"] if "RAY_AUTH_TOKEN_PATH" in each]
    assert path.startswith("--env RAY_AUTH_TOKEN_PATH=/dev/shm/")
    assert "--dashboard-host=127.0.0.1" in aws["head_start_ray_commands"][-1]


def test_the_cluster_file_uses_what_the_account_was_given(aws):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: node.value)
    template = yaml.load((ROOT / "cluster" / "provisioning" / "aws.yaml").read_text(), Loader)
    resources = template["Resources"]
    names = {
        value
        for each in resources.values()
        for key, value in each["Properties"].items()
        if key in ("GroupName", "InstanceProfileName", "Name")
    }
    profiles = {
        node["node_config"]["IamInstanceProfile"]["Name"]
        for node in aws["available_node_types"].values()
    }
    group = aws["provider"]["security_group"]["GroupName"]
    assert names == {group, *profiles, "ranet/ray-token"}
    [rule] = resources["SecurityGroup"]["Properties"]["SecurityGroupIngress"]
    assert rule == {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIp": "Address"}
    allowed = template["Parameters"]["Address"]["AllowedPattern"]
    assert re.search(allowed, "203.0.113.7/32")
    for wide in ("0.0.0.0/0", "0.0.0.0/1", "10.0.0.0/8", "203.0.113.0/23", "::/0", "0.0.0.0"):
        assert not re.search(allowed, wide), wide
    rules = [each for each in resources.values() if "Ingress" in each["Type"]]
    own = "SecurityGroup.GroupId"
    assert [each["Properties"] for each in rules] == [
        {"GroupId": own, "SourceSecurityGroupId": own, "IpProtocol": "-1"}
    ]


def test_commands_on_the_machines_are_sound_shell(aws, tmp_path):
    nodes = aws["available_node_types"].values()
    commands = [
        *aws["initialization_commands"],
        *(line for node in nodes for line in node.get("initialization_commands", [])),
        *aws["head_start_ray_commands"],
        *aws["worker_start_ray_commands"],
    ]
    script = tmp_path / "commands.sh"
    script.write_text(
        "\n".join(["RAY_HEAD_IP='' RAY_AUTH_TOKEN_PATH=''", *dict.fromkeys(commands)])
    )
    lint = [Path(sys.executable).with_name("shellcheck"), "--shell=bash", "--severity=warning"]
    outcome = subprocess.run([*lint, script], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_every_gpu_config_finds_its_workers_and_room_for_its_images(name):
    cluster = read_sweep(name).cluster if name.startswith("sweeps") else read_config(name).cluster
    offer = read_cluster_spec(ROOT / "ray_cluster.yaml")
    assert offer.lacks(cluster, gpus=1, cache_bytes=IMAGENET_BYTES) == []
    on_demand = [group for group in offer.workers if not group.is_spot]
    room = sum(group.max_workers * group.room(cluster.cpus_per_worker, 1) for group in on_demand)
    assert room >= cluster.min_workers, "a run must be able to live without any spot machine"


def test_prices_in_the_cluster_file_are_those_of_its_machines_and_a_runs_follows_from_them():
    offer = read_cluster_spec(ROOT / "ray_cluster.yaml")
    lasting, spot = offer.workers
    run = read_config("imagenet")
    eight = offer.dollars_per_hour(run.cluster, gpus=1, num_workers=8)
    scaling = (ROOT / "docs" / "scaling.md").read_text()
    rate = re.search(r"\| rate of a GPU \| L4 (\d+), .* \| assumed \|", scaling)
    assert rate
    images = run.train.epochs * round(IMAGENET_TRAIN * (1 - run.data.validation_share))
    hours = images / (8 * int(rate[1])) / 3600
    text = " ".join((ROOT / "ray_cluster.yaml").read_text().replace("#", "").split())
    assert (
        f"the head {offer.head.dollars_per_hour:.2f}; a g6.12xlarge with its 4 GPUs "
        f"{lasting.dollars_per_hour:.2f}, as a spot machine about {spot.dollars_per_hour:.2f}; the "
        f"head and 8 spot GPUs {eight:.2f}." in text
    )
    assert (
        f"A run of configs/imagenet.yaml: {hours:.1f} hours, {hours * eight:.0f} dollars (computed "
        f"for 8 spot GPUs at {rate[1]} images/s each, which is assumed: docs/scaling.md)." in text
    )
    assert f"| the whole run at these rates | {hours:.0f} h, ${hours * eight:.0f} on spot |" in (
        scaling
    )


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


def test_the_price_counts_each_machine_once():
    offer = read_cluster_spec(ROOT / "ray_cluster.yaml")
    cluster = read_config("imagenet").cluster
    for num_workers, machines in ((1, 1), (4, 1), (5, 2), (8, 2)):
        price = offer.dollars_per_hour(cluster, gpus=1, num_workers=num_workers)
        assert price == pytest.approx(0.2016 + machines * 0.4 * 4.6016)


def test_kubernetes_has_the_same_groups_as_aws(aws):
    cluster = kuberay("raycluster")
    cluster["metadata"]["namespace"] = "default"
    derived = _derive_autoscaling_config_from_ray_cr(cluster)  # as Ray's autoscaler reads it
    assert derived["idle_timeout_minutes"] == aws["idle_timeout_minutes"]
    names = {"head": "headgroup", "gpu_worker": "gpu-worker", "spot_gpu_worker": "spot-gpu-worker"}
    assert derived["available_node_types"].keys() == set(names.values())
    for name, node in aws["available_node_types"].items():
        there = derived["available_node_types"][names[name]]
        assert {key: there["resources"].get(key, 0) for key in node["resources"]} == (
            node["resources"]
        )
        for count in ("min_workers", "max_workers"):
            assert there[count] == node.get(count, 0)
    machines = [
        node["node_config"]["InstanceType"] for node in aws["available_node_types"].values()
    ]
    for group, machine in zip(groups_of(cluster["spec"])[1:], machines[1:], strict=True):
        selector = group["template"]["spec"]["nodeSelector"]
        assert selector["node.kubernetes.io/instance-type"] == machine
    folders = [
        each["mountPath"]
        for each in groups_of(cluster["spec"])[1]["template"]["spec"]["containers"][0][
            "volumeMounts"
        ]
    ]
    [volume] = aws["available_node_types"]["gpu_worker"]["docker"]["worker_run_options"]
    assert volume.rpartition(":")[2] in folders
    for group, machine in zip(groups_of(cluster["spec"])[1:], machines[1:], strict=True):
        volumes = {each["name"]: each for each in group["template"]["spec"]["volumes"]}
        limit = volumes["cache"]["emptyDir"]["sizeLimit"]
        assert limit.endswith("Gi")
        cache_bytes = int(limit[:-2]) * 2**30
        assert IMAGENET_BYTES < cache_bytes < INSTANCE_TYPES[machine].cache_gb * 1e9 * 0.95


def test_drivers_find_their_password_for_mlflow_where_the_image_has_its_home():
    [place] = re.findall(
        r"ray rsync-up ray_cluster.yaml ~/.mlflow/credentials (\S+)",
        (ROOT / "docs" / "operating.md").read_text(),
    )
    [home] = re.findall(r"^WORKDIR (\S+)/ranet$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert place == f"{home}/.mlflow/credentials"
    head, *workers = groups_of(kuberay("raycluster")["spec"])
    pod = head["template"]["spec"]
    assert pod["volumes"] == [
        {
            "name": "mlflow",
            "secret": {"secretName": "ranet-mlflow", "optional": True, "defaultMode": 0o440},
        }
    ]
    [mount] = pod["containers"][0]["volumeMounts"]
    assert mount == {"name": "mlflow", "mountPath": f"{home}/.mlflow", "readOnly": True}
    for group in workers:
        assert "secret" not in str(group["template"]["spec"]["volumes"])


def test_a_run_with_a_cluster_of_its_own_has_the_same_cluster():
    lasting = copy.deepcopy(kuberay("raycluster")["spec"])
    del lasting["gcsFaultToleranceOptions"]  # the operator makes another cluster instead
    job = kuberay("rayjob")["spec"]
    assert job["rayClusterSpec"] == lasting
    assert job["backoffLimit"] > 0


def test_kuberay_files_have_known_fields_and_sound_pods():
    cluster, job = kuberay("raycluster"), kuberay("rayjob")
    for each in (cluster, job):
        assert each["apiVersion"] == "ray.io/v1"
        assert each["spec"].keys() <= KUBERAY_FIELDS[each["kind"]]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    for name in ("autoscalerOptions", "gcsFaultToleranceOptions"):
        assert cluster["spec"][name].keys() <= KUBERAY_FIELDS[name]
    head, *workers = groups_of(cluster["spec"])
    assert head.keys() <= KUBERAY_FIELDS["headGroupSpec"]
    for group in (head, *workers):
        if group is not head:
            assert group.keys() <= KUBERAY_FIELDS["workerGroupSpec"]
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, **group["template"]}
        kubernetes_validate.validate(pod, "1.37", strict=True)
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert any(
        each.get("value") == "spot" for each in workers[1]["template"]["spec"]["tolerations"]
    )
    others = yaml.safe_load_all(
        (ROOT / "cluster" / "provisioning" / "kuberay" / "redis.yaml").read_text()
    )
    for each in others:
        kubernetes_validate.validate(each, "1.37", strict=True)


def test_the_job_is_a_run_that_can_be_read():
    words = kuberay("rayjob")["spec"]["entrypoint"].split()
    assert words[:2] == ["python", "pipelines/train.py"]
    arguments = [word.replace("BUCKET", "bucket") for word in words[2:]]
    config = arguments[arguments.index("--config") + 1]
    arguments[arguments.index("--config") + 1] = str(ROOT / config)
    assert parse_settings(Run, arguments).cluster.device == "gpu"
