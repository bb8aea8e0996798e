"""Consistency of cluster file, container image and CloudFormation template."""

import re
import subprocess
import sys
from pathlib import Path

import yaml
from packaging.specifiers import SpecifierSet

from cluster.execution.preemption import PREEMPTION_CHECK_SECONDS
from cluster.execution.ray_internals import validate_cluster_file
from cluster.provisioning.spot_notice import NOTICE_SECONDS, POLL_SECONDS
from tests.unit.cluster.provisioning.definitions import (
    RAY_SECONDS,
    SLOW_UPLOAD_BYTES_PER_SECOND,
    groups_of,
    kuberay,
    largest_checkpoint_bytes,
)
from tests.unit.test_project import PROJECT, ROOT, pinned_versions

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_cluster_file_is_accepted_by_ray(aws):
    validate_cluster_file(aws)


def test_all_nodes_use_the_same_image_with_the_pinned_ray_version(aws):
    image = aws["docker"]["image"]
    version = pinned_versions()["ray"]
    assert re.fullmatch(rf"[\w.:/-]+/ranet:ray{re.escape(version)}", image)  # with any registry
    assert DOCKERFILE.count(f"REGISTRY/ranet:ray{version}") == 2  # commands that build and push it
    base = re.search(r"^FROM rayproject/ray:([\d.]+)-py3(\d+)-gpu$", DOCKERFILE, re.MULTILINE)
    assert base
    assert base[1] == version
    assert f"3.{base[2]}" in SpecifierSet(PROJECT["requires-python"])
    for spec in (kuberay("raycluster")["spec"], kuberay("rayjob")["spec"]["rayClusterSpec"]):
        assert spec["rayVersion"] == version
        for group in groups_of(spec):
            assert [each["image"] for each in group["template"]["spec"]["containers"]] == [image]


def test_nodes_require_a_token_that_no_file_contains(aws):
    assert "--env RAY_AUTH_MODE=token" in aws["docker"]["run_options"]
    for commands in (aws["head_start_ray_commands"], aws["worker_start_ray_commands"]):
        stop, token, start, *_ = commands
        assert stop == "ray stop"
        assert 'SecretId="ranet/ray-token"' in token
        assert token.endswith("> $RAY_AUTH_TOKEN_PATH")
        assert start.startswith("ray start ")
    [path] = [each for each in aws["docker"]["run_options"] if "RAY_AUTH_TOKEN_PATH" in each]
    assert path.startswith("--env RAY_AUTH_TOKEN_PATH=/dev/shm/")
    assert "--dashboard-host=127.0.0.1" in aws["head_start_ray_commands"][-1]


def test_each_worker_polls_for_spot_notices_with_the_script_of_the_image(aws):
    *_, start, poll = aws["worker_start_ray_commands"]
    assert start.startswith("ray start ")
    [path] = re.findall(r"^nohup setsid python (\S+) .*&$", poll)
    [home] = re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, re.MULTILINE)
    script = path.removeprefix(f"{home}/")
    assert (ROOT / script).is_file()
    [copied] = re.findall(
        r"^COPY --chown=1000:100 (\S+spot_notice.py) (\S+)/$", DOCKERFILE, re.MULTILINE
    )
    assert copied == (script, str(Path(script).parent))


def test_spot_notice_leaves_time_for_the_largest_checkpoint():
    # The poller, Ray's own interval and the workers' check pass before the checkpoint starts.
    seconds = NOTICE_SECONDS - POLL_SECONDS - RAY_SECONDS - PREEMPTION_CHECK_SECONDS
    assert seconds > largest_checkpoint_bytes() / SLOW_UPLOAD_BYTES_PER_SECOND


def test_cluster_file_uses_the_resources_of_the_cloudformation_template(aws):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: node.value)
    template = yaml.load((ROOT / "cluster" / "provisioning" / "aws.yaml").read_text(), Loader)
    resources = template["Resources"]
    names = {
        value
        for each in resources.values()
        for key, value in each["Properties"].items()
        if key in ("InstanceProfileName", "Name")
    }
    profiles = {
        node["node_config"]["IamInstanceProfile"]["Name"]
        for node in aws["available_node_types"].values()
    }
    assert names == {*profiles, "ranet/ray-token"}
    node_configs = [node["node_config"] for node in aws["available_node_types"].values()]
    words = {
        word for each in node_configs for word in (*each["SecurityGroupIds"], *each["SubnetIds"])
    }
    words |= {each["Placement"]["GroupName"] for each in node_configs if "Placement" in each}
    assert words | {"REGISTRY"} == template["Outputs"].keys()
    assert "security_group" not in aws["provider"]  # Ray would look it up by name, or create it
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


def test_node_commands_pass_shellcheck(aws, tmp_path):
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
    result = subprocess.run([*lint, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
