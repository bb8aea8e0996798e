"""Nodes that Ray creates on EC2, for which moto stands in."""

import copy
from typing import Any

import boto3
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config

ZONE = "us-west-2a"
OPEN = "0.0.0.0/0"


def public_subnet(ec2, block):
    vpc = ec2.create_vpc(CidrBlock=block)
    subnet = vpc.create_subnet(CidrBlock=block, AvailabilityZone=ZONE)
    ec2.meta.client.modify_subnet_attribute(SubnetId=subnet.id, MapPublicIpOnLaunch={"Value": True})
    return vpc, subnet


def stack_outputs(ec2):
    """Create the resources of the stack in the second of two VPCs."""
    public_subnet(ec2, "10.1.0.0/24")
    vpc, subnet = public_subnet(ec2, "10.2.0.0/24")
    group = ec2.create_security_group(GroupName="ranet", Description="nodes", VpcId=vpc.id)
    return {
        "SECURITYGROUP": group.id, "SUBNET": subnet.id, "PLACEMENTGROUP": "ranet-nodes",
    }  # fmt: skip


def with_outputs(value: Any, outputs: dict[str, str]) -> Any:
    """Replace the words that stand for outputs of the stack."""
    if isinstance(value, dict):
        return {key: with_outputs(each, outputs) for key, each in value.items()}
    if isinstance(value, list):
        return [with_outputs(each, outputs) for each in value]
    return outputs.get(value, value) if isinstance(value, str) else value


def open_rules(ec2):
    return [
        (group.group_name, rule)
        for group in ec2.security_groups.all()
        for rule in group.ip_permissions
        if any(each["CidrIp"] == OPEN for each in rule["IpRanges"])
    ]


def test_nodes_get_the_group_of_the_stack_and_ray_creates_none(aws, ec2):
    outputs = stack_outputs(ec2)
    before = {group.id for group in ec2.security_groups.all()}
    config = bootstrap_aws(prepare_config(with_outputs(aws, outputs)))
    for node in config["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == [outputs["SECURITYGROUP"]]
        assert node["node_config"]["SubnetIds"] == [outputs["SUBNET"]]
    assert {group.id for group in ec2.security_groups.all()} == before
    assert open_rules(ec2) == []


def test_ray_opens_ssh_to_the_world_if_the_group_is_given_by_its_name(aws, ec2):
    # The reason for the ids: the same file with a name.
    outputs = stack_outputs(ec2)
    named = copy.deepcopy(with_outputs(aws, outputs))
    named["provider"]["security_group"] = {"GroupName": "ranet"}
    for node in named["available_node_types"].values():
        del node["node_config"]["SecurityGroupIds"], node["node_config"]["SubnetIds"]
    bootstrap_aws(prepare_config(named))
    assert [name for name, _ in open_rules(ec2)] == ["ranet"]


def test_none_of_rays_default_setup_commands_remains(aws):
    config = prepare_config(aws)
    for kind in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert config[kind] == []
    for node in config["available_node_types"].values():
        assert not node.get("worker_setup_commands")


def test_created_machines_have_disk_tags_and_placement_of_the_cluster_file(aws, ec2):
    outputs = stack_outputs(ec2)
    config = bootstrap_aws(prepare_config(with_outputs(aws, outputs)))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    image = next(iter(ec2.images.all())).id
    for profile in ("ranet-head", "ranet-worker"):
        boto3.client("iam").create_instance_profile(InstanceProfileName=profile)
    requests = []
    recorded: Any = provider.ec2_fail_fast
    recorded.meta.client.meta.events.register(
        "provide-client-params.ec2.RunInstances", lambda params, **_: requests.append(params)
    )
    for name in ("head", "gpu_worker"):
        node_config = config["available_node_types"][name]["node_config"] | {"ImageId": image}
        provider.create_node(node_config, {"ray-user-node-type": name}, 1)
    # moto ignores placement and throughput of a request.
    head, worker = requests
    assert "Placement" not in head
    assert worker["Placement"] == {"GroupName": outputs["PLACEMENTGROUP"]}
    for request in requests:
        [disk] = request["BlockDeviceMappings"]
        assert disk["Ebs"]["Throughput"] == 500
    machines = list(ec2.instances.all())
    assert len(machines) == 2
    for instance in machines:
        assert [group["GroupId"] for group in instance.security_groups] == [
            outputs["SECURITYGROUP"]
        ]
        assert instance.subnet_id == outputs["SUBNET"]
        [volume] = instance.volumes.all()
        assert volume.size == 200
        assert {"Key": "ray-cluster-name", "Value": "ranet"} in volume.tags
        [mapping] = instance.block_device_mappings
        assert mapping["Ebs"]["DeleteOnTermination"] is True
