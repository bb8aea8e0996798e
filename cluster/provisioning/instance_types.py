"""Machines that a cluster file may name: what they have, and what they cost."""

from dataclasses import dataclass

SPOT_SHARE = 0.4
"""Price of a spot machine as a share of the price on demand: assumed, it changes by the hour."""


@dataclass(frozen=True, kw_only=True)
class InstanceType:
    """A type of machine."""

    cpus: int
    """Virtual CPUs."""
    gpus: int = 0
    accelerator: str = ""
    """Ray's name for the kind of GPU."""
    memory_gb: int
    cache_gb: int = 0
    """One NVMe disk of its own; of several, each."""
    dollars_per_hour: float
    """On demand."""


# AWS's list prices for Linux in us-west-2, as of 2025 and from memory: not looked up since.
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
