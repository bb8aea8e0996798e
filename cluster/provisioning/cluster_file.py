"""Parse `ray_cluster.yaml` and compare its node types with a run's request."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from cluster.config import ClusterConfig
from cluster.execution.ray_internals import validate_cluster_file
from cluster.provisioning.instance_types import INSTANCE_TYPES, InstanceType

CLUSTER_FILE = Path("ray_cluster.yaml")
"""Cluster file of this project on AWS."""


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Node type of a cluster file."""

    name: str
    machine_name: str
    machine: InstanceType
    is_spot: bool
    """Spot instances: cheaper, and may be preempted at any time."""
    resources: dict[str, int]
    """Resources that each node declares to Ray."""
    max_workers: int
    """Maximum number of nodes of this type; 0 for the head."""
    priority: int
    """Ray's autoscaler starts nodes of types with a higher priority first."""

    def capacity(self, cpus: int, gpus: int) -> int:
        """Return the number of such workers that fit one node."""
        request = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        return min(self.resources.get(name, 0) // count for name, count in request.items())


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Cluster spec: node types and maximum number of workers."""

    path: Path
    name: str
    """Name of the cluster, which Ray gives to its machines as a tag."""
    region: str
    """AWS region."""
    head: NodeType
    workers: tuple[NodeType, ...]
    max_workers: int

    def worker_nodes(self, cluster: ClusterConfig, *, gpus: int) -> Iterator[NodeType]:
        """Yield the node type of each possible worker, highest priority first."""
        remaining = self.max_workers
        for group in sorted(self.workers, key=lambda group: -group.priority):
            if (capacity := group.capacity(cluster.cpus_per_worker, gpus)) > 0:
                num_nodes = min(group.max_workers, remaining)
                remaining -= num_nodes
                yield from [group] * (num_nodes * capacity)

    def problems(self, cluster: ClusterConfig, *, gpus: int, cache_bytes: int = 0) -> list[str]:
        """Return the reasons why a run does not fit the cluster.

        Args:
            cluster: resources that the run requests.
            gpus: GPUs of each worker.
            cache_bytes: size of the images that each node copies to its disk, in bytes.
        """
        nodes = list(self.worker_nodes(cluster, gpus=gpus))
        fits = any(group.capacity(cluster.cpus_per_worker, gpus) for group in self.workers)
        each = f"{cluster.cpus_per_worker} CPUs" + (f" and {gpus} GPU" if gpus else "")
        if not fits:
            return [
                f"cluster.cpus_per_worker: no node type of {self.path} fits a worker of {each}; "
                "reduce cluster.cpus_per_worker, or use a larger instance type there"
            ]
        sentences = []
        if len(nodes) < cluster.max_workers:
            sentences.append(
                f"cluster.num_workers requests up to {cluster.max_workers} workers of {each}, but "
                f"{self.path} has capacity for {len(nodes)}; increase max_workers there, or "
                "request "
                "fewer workers"
            )
        for group in {group.name: group for group in nodes[: cluster.max_workers]}.values():
            disk = group.machine.cache_gb * 1e9 * 0.95  # the file system needs some space itself
            if cache_bytes > disk:
                sentences.append(
                    f"data.prepared_dir: {cache_bytes / 1e9:.0f} GB of images do not fit the disk "
                    "of "
                    f"{group.name} in {self.path}, {disk / 1e9:.0f} GB; prepare smaller "
                    "images (data.max_side), or use an instance type with a larger disk there"
                )
        return sentences

    def num_nodes(self, cluster: ClusterConfig, *, gpus: int, num_workers: int) -> int:
        """Return the number of nodes of `num_workers` workers, without the head."""
        nodes, free = 0, 0
        for group in list(self.worker_nodes(cluster, gpus=gpus))[:num_workers]:
            if free == 0:
                free = group.capacity(cluster.cpus_per_worker, gpus)
                nodes += 1
            free -= 1
        return nodes


def read_cluster_spec(path: Path = CLUSTER_FILE) -> ClusterSpec:
    """Read a cluster file.

    Raises:
        ValueError: the file is invalid, or declares resources that an instance type does not have.
    """
    try:
        content = yaml.safe_load(path.read_bytes())
        head = content["head_node_type"]
        groups = {
            name: _node_type(f"{path}: {name}", name, node)
            for name, node in content["available_node_types"].items()
        }
        workers = tuple(group for name, group in groups.items() if name != head)
        spec = ClusterSpec(
            path=path,
            name=content["cluster_name"],
            region=content["provider"]["region"],
            head=groups[head],
            workers=workers,
            max_workers=content["max_workers"],
        )
        _check_by_ray(path, content)
        return spec
    except OSError as error:
        raise ValueError(f"{path}: no such cluster file ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except KeyError as error:
        raise ValueError(f"{path} has no {error}; see the cluster YAML reference of Ray") from None
    except (TypeError, AttributeError) as error:  # a list instead of a mapping, or nothing
        raise ValueError(f"{path} is not a cluster file of Ray: {error}") from None


def _check_by_ray(path: Path, content: dict[str, Any]) -> None:
    """Validate a cluster file as `ray up` does."""
    try:
        validate_cluster_file(content)
    except jsonschema.ValidationError as error:
        key = ".".join(str(part) for part in error.absolute_path) or "top level"
        raise ValueError(f"{path} is rejected by Ray, {key}: {error.message}") from None
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is rejected by Ray: {error}") from None


def _node_type(where: str, name: str, node: dict[str, Any]) -> NodeType:
    config = node["node_config"]
    machine_name = config["InstanceType"]
    if machine_name not in INSTANCE_TYPES:
        raise ValueError(
            f"{where}.node_config.InstanceType is {machine_name}, which is unknown; add its "
            "resources to cluster/provisioning/instance_types.py"
        )
    machine = INSTANCE_TYPES[machine_name]
    available = {"CPU": machine.cpus, "GPU": machine.gpus}
    for resource, count in node["resources"].items():
        if resource not in available:
            hint = difflib.get_close_matches(resource.upper(), available, n=1, cutoff=0.5)
            raise ValueError(
                f"{where}.resources has {resource}, which no run requests; "
                + (f"did you mean {hint[0]}?" if hint else "use CPU and GPU")
            )
        if type(count) is not int or count < 0:
            raise ValueError(f"{where}.resources.{resource} must be 0 or more, got {count!r}")
        if count > available[resource]:
            raise ValueError(
                f"{where}.resources declares {resource}: {count}, but a {machine_name} has "
                f"{available[resource]}; declare no more than that, workers must not share it"
            )
    market = config.get("InstanceMarketOptions", {})
    return NodeType(
        name=name,
        machine_name=machine_name,
        machine=machine,
        is_spot=market.get("MarketType") == "spot",
        # Ray detects the resources that the file does not declare.
        resources={kind: count for kind, count in available.items() if count} | node["resources"],
        max_workers=node.get("max_workers", 0),
        priority=node.get("priority", 0),
    )
