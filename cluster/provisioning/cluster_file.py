"""What a cluster file offers, and what of it a run would lack: known before anything is rented."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.config import ClusterConfig
from cluster.provisioning.instance_types import INSTANCE_TYPES, SPOT_SHARE, InstanceType

CLUSTER_FILE = Path("ray_cluster.yaml")
"""Where this project describes its cluster on AWS."""


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Machines of one kind in a cluster file."""

    name: str
    machine_name: str
    machine: InstanceType
    is_spot: bool
    """May be taken away at any time, and costs less."""
    resources: dict[str, int]
    """What Ray is told that each of them has."""
    max_workers: int
    """Machines at most; 0 for a head."""

    @property
    def dollars_per_hour(self) -> float:
        """Price of one machine."""
        return self.machine.dollars_per_hour * (SPOT_SHARE if self.is_spot else 1)

    def room(self, cpus: int, gpus: int) -> int:
        """Count the workers of so many CPUs and GPUs that one of these machines takes."""
        wanted = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        return min(self.resources.get(name, 0) // count for name, count in wanted.items())


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """A cluster file: its head, its groups of workers, and how many workers in all."""

    path: Path
    head: NodeType
    workers: tuple[NodeType, ...]
    max_workers: int

    def places(self, cluster: ClusterConfig, *, gpus: int) -> Iterator[NodeType]:
        """Give the machine that each worker of a run would be on, cheapest first, as far as any."""
        machines = self.max_workers
        for group in sorted(self.workers, key=lambda group: group.dollars_per_hour):
            if (room := group.room(cluster.cpus_per_worker, gpus)) > 0:
                taken = min(group.max_workers, machines)
                machines -= taken
                yield from [group] * (taken * room)

    def lacks(self, cluster: ClusterConfig, *, gpus: int, cache_bytes: int = 0) -> list[str]:
        """Say in sentences what keeps a run's workers from being placed; none where they fit.

        Args:
            cluster: what the run asks for.
            gpus: GPUs of each worker.
            cache_bytes: bytes of images that each machine copies to its disk.
        """
        places = list(self.places(cluster, gpus=gpus))
        fits = any(group.room(cluster.cpus_per_worker, gpus) for group in self.workers)
        each = f"{cluster.cpus_per_worker} CPUs" + (f" and {gpus} GPU" if gpus else "")
        if not fits:
            return [
                f"cluster.cpus_per_worker: no machine of {self.path} takes a worker of {each}; "
                "lower it, or name larger machines there"
            ]
        sentences = []
        if len(places) < cluster.max_workers:
            sentences.append(
                f"cluster.num_workers asks for up to {cluster.max_workers} workers of {each}, but "
                f"{self.path} has room for {len(places)}; raise max_workers there, or ask for less"
            )
        for group in {group.name: group for group in places[: cluster.max_workers]}.values():
            disk = group.machine.cache_gb * 1e9 * 0.95  # a file system takes its part
            if cache_bytes > disk:
                sentences.append(
                    f"data.prepared_dir: {cache_bytes / 1e9:.0f} GB of images do not fit the disk of "
                    f"{group.name} in {self.path}, {disk / 1e9:.0f} GB; prepare smaller ones "
                    "(data.max_side), or name machines with larger disks there"
                )
        return sentences

    def dollars_per_hour(self, cluster: ClusterConfig, *, gpus: int, num_workers: int) -> float:
        """Price of the head and of the machines that so many workers are on."""
        total, free = self.head.dollars_per_hour, 0
        for group in list(self.places(cluster, gpus=gpus))[:num_workers]:
            if free == 0:
                free = group.room(cluster.cpus_per_worker, gpus)
                total += group.dollars_per_hour
            free -= 1
        return total


def read_cluster_spec(path: Path = CLUSTER_FILE) -> ClusterSpec:
    """Read a cluster file.

    Raises:
        ValueError: it is none, or promises what its machines do not have.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
        head = content["head_node_type"]
        groups = {
            name: _group(f"{path}: {name}", name, node)
            for name, node in content["available_node_types"].items()
        }
        workers = tuple(group for name, group in groups.items() if name != head)
        offer = ClusterSpec(
            path=path, head=groups[head], workers=workers, max_workers=content["max_workers"]
        )
        _check_by_ray(path, content)
        return offer
    except OSError as error:
        raise ValueError(f"{path}: no such cluster file ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; see Ray's description of cluster files") from None
    except (TypeError, AttributeError) as error:  # a list where names are asked for, or nothing
        raise ValueError(f"{path} is no cluster file as Ray describes them: {error}") from None


def _check_by_ray(path: Path, content: dict[str, Any]) -> None:
    """Refuse what `ray up` would refuse."""
    try:
        validate_config(prepare_config(content))
    except jsonschema.ValidationError as error:
        place = ".".join(str(part) for part in error.absolute_path) or "its first level"
        raise ValueError(f"{path} is refused by Ray, {place}: {error.message}") from None
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is refused by Ray: {error}") from None


def _group(where: str, name: str, node: dict[str, Any]) -> NodeType:
    config = node["node_config"]
    machine_name = config["InstanceType"]
    if machine_name not in INSTANCE_TYPES:
        raise ValueError(
            f"{where}.node_config.InstanceType is {machine_name}, of which nothing is known here; "
            "add what it has and costs to cluster/provisioning/instance_types.py"
        )
    machine = INSTANCE_TYPES[machine_name]
    has = {"CPU": machine.cpus, "GPU": machine.gpus}
    for resource, count in node["resources"].items():
        if resource not in has:
            hint = difflib.get_close_matches(resource.upper(), has, n=1, cutoff=0.5)
            raise ValueError(
                f"{where}.resources has {resource}, which no run asks for; "
                + (f"did you mean {hint[0]}?" if hint else "there are CPU and GPU")
            )
        if type(count) is not int or count < 0:
            raise ValueError(f"{where}.resources.{resource} must be 0 or more, got {count!r}")
        if count > has[resource]:
            raise ValueError(
                f"{where}.resources promises {resource}: {count}, but a {machine_name} has "
                f"{has[resource]}: workers would share what each of them takes for its own"
            )
    market = config.get("InstanceMarketOptions", {})
    return NodeType(
        name=name,
        machine_name=machine_name,
        machine=machine,
        is_spot=market.get("MarketType") == "spot",
        # As Ray finds them out itself where the file does not say
        resources={kind: count for kind, count in has.items() if count} | node["resources"],
        max_workers=node.get("max_workers", 0),
    )
