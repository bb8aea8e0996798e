"""Preconditions of a run on rented machines, for their owner.

The dry run prints them, and docs/first-gpu-run.md lists them.
"""

from dataclasses import dataclass

from cluster.findings import Finding


@dataclass(frozen=True)
class Precondition:
    """Fact about the AWS account that holds before machines are rented."""

    text: str
    """Fact, in words."""
    command: str
    """Shell command that shows the fact."""
    expected: str
    """Output of the command, in words or literally."""

    def __str__(self) -> str:
        """Format the precondition as a line."""
        return f"{self.text}: `{self.command}` prints {self.expected}"


_QUOTA = "aws service-quotas get-service-quota --service-code ec2 --query Quota.Value --quota-code"

PRECONDITIONS = (
    Precondition(
        "the outputs of the stack are in the cluster file",
        "grep -cwE 'REGISTRY|SECURITYGROUP|SUBNET|PLACEMENTGROUP' ray_cluster.yaml",
        "0",
    ),
    Precondition(
        "SSH is allowed from here",
        "curl -s https://checkip.amazonaws.com",
        "the IP address that the stack was deployed with",
    ),
    Precondition("vCPUs of G instances on demand", f"{_QUOTA} L-DB2E81BA", "48.0 or more"),
    Precondition("vCPUs of G instances on spot", f"{_QUOTA} L-3819A6DF", "96.0 or more"),
    Precondition(
        "the role with which AWS starts spot machines",
        "aws iam get-role --role-name AWSServiceRoleForEC2Spot --query Role.RoleName",
        '"AWSServiceRoleForEC2Spot"',
    ),
    Precondition(
        "the image is in the registry",
        "aws ecr describe-images --repository-name ranet --image-ids imageTag=ray2.60.0 "
        "--query 'imageDetails[0].imageTags'",
        "ray2.60.0",
    ),
    Precondition(
        "the driver of AWS's machine image is 580 or newer",
        "aws ssm get-parameter --query Parameter.Value --name /aws/service/deeplearning/ami/x86_64/"
        "base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id",
        "an id; the release notes of that image name its driver",
    ),
    Precondition(
        "nothing of an earlier cluster is left",
        "python -m cluster.provisioning.aws_resources list",
        "0 still there",
    ),
)
"""Preconditions in the order in which they are checked."""


def precondition_findings() -> list[Finding]:
    """Return one finding per precondition."""
    return [Finding("check first", str(each)) for each in PRECONDITIONS]
