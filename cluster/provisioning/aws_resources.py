"""List or delete machines, disks and IP addresses of the cluster.

    python -m cluster.provisioning.aws_resources list
    python -m cluster.provisioning.aws_resources delete

Finds them by Ray's tag with the name of the cluster in ray_cluster.yaml. After `ray down` nothing
should be left; a machine that is started while the head ends may be.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from cluster.cli import CommandLine, main_guard
from cluster.errors import RanetError
from cluster.provisioning.cluster_file import read_cluster_spec

TAG = "ray-cluster-name"
"""Tag with the cluster's name, given to machines by Ray and to disks by ray_cluster.yaml."""
ALIVE = ("pending", "running", "stopping", "stopped")
"""States of a machine that costs money, or whose disk does."""


@dataclass(frozen=True)
class Resource:
    """Resource in AWS that costs money while it exists."""

    kind: Literal["instance", "volume", "IP address"]
    id: str
    description: str

    def __str__(self) -> str:
        """Format the resource as a line."""
        return f"{self.kind:<10}  {self.id:<26}  {self.description}"


def find_resources(ec2: Any, cluster: str) -> list[Resource]:
    """Find machines, disks and IP addresses of a cluster.

    Args:
        ec2: boto3 client of EC2 in the region of the cluster.
        cluster: name of the cluster.
    """
    tagged = {"Name": f"tag:{TAG}", "Values": [cluster]}
    alive = {"Name": "instance-state-name", "Values": list(ALIVE)}
    found = [
        Resource("instance", each["InstanceId"], _describe(each))
        for page in _pages(ec2, "describe_instances", [tagged, alive])
        for reservation in page["Reservations"]
        for each in reservation["Instances"]
    ]
    found += [
        Resource("volume", each["VolumeId"], f"{each['Size']} GB, {each['State']}")
        for page in _pages(ec2, "describe_volumes", [tagged])
        for each in page["Volumes"]
    ]
    instances = {each.id for each in found if each.kind == "instance"}
    for each in ec2.describe_addresses()["Addresses"]:
        tags = {tag["Key"]: tag["Value"] for tag in each.get("Tags", [])}
        user = each.get("InstanceId") or "no instance"
        if tags.get(TAG) == cluster or user in instances:
            found.append(
                Resource("IP address", each["AllocationId"], f"{each['PublicIp']}, used by {user}")
            )
    return found


def _describe(instance: dict[str, Any]) -> str:
    state, start = instance["State"]["Name"], instance["LaunchTime"]
    return f"{instance['InstanceType']}, {state}, started {start:%F %R} UTC"


def _pages(ec2: Any, operation: str, filters: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from ec2.get_paginator(operation).paginate(Filters=filters)


def delete_resources(ec2: Any, resources: Sequence[Resource]) -> None:
    """Terminate the machines, then delete disks and release IP addresses.

    Waits until the machines have ended, up to ten minutes; their own disks end with them.
    """
    ids = {
        kind: [each.id for each in resources if each.kind == kind]
        for kind in ("instance", "volume", "IP address")
    }
    if ids["instance"]:
        ec2.terminate_instances(InstanceIds=ids["instance"])
        ec2.get_waiter("instance_terminated").wait(InstanceIds=ids["instance"])
    for volume in ids["volume"]:
        try:
            ec2.delete_volume(VolumeId=volume)
        except ClientError as error:  # it ended with its machine
            if error.response["Error"]["Code"] != "InvalidVolume.NotFound":
                raise
    for allocation in ids["IP address"]:
        ec2.release_address(AllocationId=allocation)


def command_line() -> CommandLine:
    """Declare the subcommands."""
    parser = CommandLine(__doc__, prog="python -m cluster.provisioning.aws_resources")
    commands = parser.add_subcommands(dest="command", required=True)
    for name, text in (
        ("list", "list what exists"),
        ("delete", "terminate and delete what exists, also of a running cluster"),
    ):
        commands.add_subcommand(name, CommandLine(f"{text[0].upper()}{text[1:]}."), help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """List or delete the resources of the cluster of ray_cluster.yaml."""
    options = command_line().read(argv)
    with main_guard():
        spec = read_cluster_spec()
        try:
            ec2 = boto3.client("ec2", spec.region)
            resources = find_resources(ec2, spec.name)
            if options.command == "delete":
                delete_resources(ec2, resources)
        except (BotoCoreError, ClientError) as error:
            raise RanetError(f"AWS in {spec.region}: {error}") from error
        verb = "deleted" if options.command == "delete" else "still there"
        lines = [
            *map(str, resources),
            f"{len(resources)} {verb} in {spec.region}, cluster {spec.name}",
        ]
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
