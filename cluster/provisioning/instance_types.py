"""Resources and prices of AWS instance types."""

from dataclasses import dataclass

SPOT_SHARE = 0.4
"""Spot price as a fraction of the on-demand price; an assumption, spot prices change hourly."""


@dataclass(frozen=True, kw_only=True)
class InstanceType:
    """AWS instance type."""

    cpus: int
    """Number of virtual CPUs."""
    gpus: int = 0
    accelerator: str = ""
    """Ray's name of the GPU type."""
    memory_gb: int
    cache_gb: int = 0
    """Size of one local NVMe disk, in GB."""
    dollars_per_hour: float
    """On-demand price."""


# AWS's list prices for Linux in us-west-2, as of 2025, from memory and not verified since.
INSTANCE_TYPES = {
    "m7i.xlarge": InstanceType(cpus=4, memory_gb=16, dollars_per_hour=0.2016),
    "g6.2xlarge": InstanceType(
        cpus=8, gpus=1, accelerator="L4", memory_gb=32, cache_gb=450, dollars_per_hour=0.9776
    ),
    "g6.12xlarge": InstanceType(
        cpus=48, gpus=4, accelerator="L4", memory_gb=192, cache_gb=940, dollars_per_hour=4.6016
    ),
    "p4d.24xlarge": InstanceType(
        cpus=96, gpus=8, accelerator="A100", memory_gb=1152, cache_gb=1000,
        dollars_per_hour=21.9576,
    ),
    "p5.48xlarge": InstanceType(
        cpus=192, gpus=8, accelerator="H100", memory_gb=2048, cache_gb=3840,
        dollars_per_hour=55.04,
    ),
}  # fmt: skip
