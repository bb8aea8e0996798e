"""Machines, disks and IP addresses that a cluster left in EC2."""

import boto3
import pytest

from cluster.provisioning import aws_resources
from tests.unit.test_project import ROOT

TAGS = [{"Key": "ray-cluster-name", "Value": "ranet"}]


@pytest.fixture
def leftovers(ec2, monkeypatch):
    """IDs of the resources of the cluster, among those of others."""
    monkeypatch.chdir(ROOT)
    client = boto3.client("ec2", "us-west-2")
    image = next(iter(ec2.images.all())).id

    def start(tags):
        tagged = [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")]
        [instance] = ec2.create_instances(
            ImageId=image, MinCount=1, MaxCount=1, TagSpecifications=tagged
        )
        return instance

    def volume(tags):
        return ec2.create_volume(
            AvailabilityZone="us-west-2a", Size=9,
            TagSpecifications=[{"ResourceType": "volume", "Tags": tags}],
        ).id  # fmt: skip

    def address(tags=()):
        return client.allocate_address(
            Domain="vpc", TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": list(tags)}]
        )["AllocationId"]

    other = [{"Key": "ray-cluster-name", "Value": "other"}]
    for create in (start, volume, address):
        create(other)
    address()
    ended = start(TAGS)
    ended.terminate()
    machine = start(TAGS)
    used = address()
    client.associate_address(InstanceId=machine.id, AllocationId=used)
    return {
        "instance": {machine.id},
        "volume": {volume(TAGS), *(each.id for each in machine.volumes.all())},
        "IP address": {used, address(TAGS)},
    }


def found(ec2):
    resources = aws_resources.find_resources(ec2.meta.client, "ranet")
    kinds = {each.kind for each in resources}
    return {kind: {each.id for each in resources if each.kind == kind} for kind in kinds}


def test_resources_of_the_cluster_are_listed_and_no_others(ec2, leftovers, capsys):
    aws_resources.main(["list"])
    output = capsys.readouterr().out
    for ids in leftovers.values():
        for each in ids:
            assert each in output
    assert output.endswith("5 still there in us-west-2, cluster ranet\n")
    assert found(ec2) == leftovers


def test_delete_leaves_nothing_of_the_cluster_and_all_of_others(ec2, leftovers, capsys):
    def others():
        return (
            len([each for each in ec2.instances.all() if each.state["Name"] == "running"]),
            len(list(ec2.volumes.all())),
            len(list(ec2.vpc_addresses.all())),
        )

    machines, volumes, addresses = others()
    aws_resources.main(["delete"])
    assert "5 deleted in us-west-2, cluster ranet" in capsys.readouterr().out
    assert found(ec2) == {}
    assert others() == (machines - 1, volumes - 2, addresses - 2)
    aws_resources.main(["list"])
    assert capsys.readouterr().out == "0 still there in us-west-2, cluster ranet\n"


def test_missing_credentials_are_one_sentence(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(SystemExit):
        aws_resources.main(["list"])
    assert "error: AWS in us-west-2: Unable to locate credentials" in capsys.readouterr().err
