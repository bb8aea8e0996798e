"""KubeRay files: consistency with the cluster file and Kubernetes' schemas."""

import copy
import re

import kubernetes_validate
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from cluster.cli import parse_settings
from cluster.execution.preemption import PREEMPTION_CHECK_SECONDS
from cluster.provisioning.instance_types import INSTANCE_TYPES
from cluster.provisioning.spot_notice import NOTICE_SECONDS
from pipelines.run import Run
from tests.unit.cluster.provisioning.definitions import (
    IMAGENET_BYTES,
    RAY_SECONDS,
    SLOW_UPLOAD_BYTES_PER_SECOND,
    groups_of,
    kuberay,
    largest_checkpoint_bytes,
)
from tests.unit.test_project import ROOT

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
        "securityContext", "idleTimeoutSeconds", "upscalingMode", "version",
    },
    "gcsFaultToleranceOptions": {
        "redisAddress", "redisPassword", "redisUsername", "externalStorageNamespace",
    },
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpec": {
        "groupName", "replicas", "minReplicas", "maxReplicas", "priority", "rayStartParams",
        "template",
    },
}  # fmt: skip


def test_kuberay_has_the_same_node_types_as_the_cluster_file(aws):
    cluster = kuberay("raycluster")
    cluster["metadata"]["namespace"] = "default"
    derived = _derive_autoscaling_config_from_ray_cr(cluster)  # as Ray's autoscaler reads it
    assert derived["idle_timeout_minutes"] == aws["idle_timeout_minutes"]
    names = {name: name.replace("_", "-") for name in aws["available_node_types"]}
    names["head"] = "headgroup"
    assert derived["available_node_types"].keys() == set(names.values())
    for name, node in aws["available_node_types"].items():
        there = derived["available_node_types"][names[name]]
        assert {key: there["resources"].get(key, 0) for key in node["resources"]} == (
            node["resources"]
        )
        for key in ("min_workers", "max_workers", "priority"):
            assert there.get(key, 0) == node.get(key, 0)
    # Only this version of Ray's autoscaler reads the priority.
    assert cluster["spec"]["autoscalerOptions"]["version"] == "v2"
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


def test_terminated_pod_has_time_for_the_largest_checkpoint():
    _, *workers = groups_of(kuberay("raycluster")["spec"])
    for group in workers:
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        [drain] = [
            int(each["value"])
            for each in container["env"]
            if each["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        ]
        seconds = drain - RAY_SECONDS - PREEMPTION_CHECK_SECONDS
        assert seconds > largest_checkpoint_bytes() / SLOW_UPLOAD_BYTES_PER_SECOND
        assert pod["terminationGracePeriodSeconds"] >= drain + 10  # Ray's processes have to end
        # AWS terminates a spot machine 120 s after its notice.
        assert pod["terminationGracePeriodSeconds"] <= NOTICE_SECONDS


def test_mlflow_credentials_are_in_the_home_folder_of_the_image():
    [path] = re.findall(
        r"ray rsync-up ray_cluster.yaml ~/.mlflow/credentials (\S+)",
        (ROOT / "docs" / "operating" / "cluster.md").read_text(),
    )
    [home] = re.findall(r"^WORKDIR (\S+)/ranet$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert path == f"{home}/.mlflow/credentials"
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


def test_rayjob_has_the_cluster_of_the_raycluster_file():
    raycluster = copy.deepcopy(kuberay("raycluster")["spec"])
    del raycluster["gcsFaultToleranceOptions"]  # the operator starts another cluster instead
    job = kuberay("rayjob")["spec"]
    assert job["rayClusterSpec"] == raycluster
    assert job["backoffLimit"] > 0


def test_kuberay_files_have_known_fields_and_valid_pods():
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


def test_entrypoint_of_the_rayjob_is_a_valid_training_command():
    words = kuberay("rayjob")["spec"]["entrypoint"].split()
    assert words[:2] == ["python", "pipelines/train.py"]
    arguments = [word.replace("BUCKET", "bucket") for word in words[2:]]
    config = arguments[arguments.index("--config") + 1]
    arguments[arguments.index("--config") + 1] = str(ROOT / config)
    assert parse_settings(Run, arguments).cluster.device == "gpu"
