"""Resources of AWS instance types.

From AWS's specifications of M, G and P instances; prices are not listed, because they change.
"""

from dataclasses import dataclass


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


INSTANCE_TYPES = {
    "m7i.xlarge": InstanceType(cpus=4, memory_gb=16),
    "m6id.4xlarge": InstanceType(cpus=16, memory_gb=64, cache_gb=950),
    "g6.2xlarge": InstanceType(cpus=8, gpus=1, accelerator="L4", memory_gb=32, cache_gb=450),
    "g6.12xlarge": InstanceType(cpus=48, gpus=4, accelerator="L4", memory_gb=192, cache_gb=940),
    "p4d.24xlarge": InstanceType(cpus=96, gpus=8, accelerator="A100", memory_gb=1152,
                                 cache_gb=1000),
    "p5.48xlarge": InstanceType(cpus=192, gpus=8, accelerator="H100", memory_gb=2048,
                                cache_gb=3840),
}  # fmt: skip
