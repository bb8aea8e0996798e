"""Check of the NVIDIA driver on the nodes before workers start."""

import logging
import subprocess
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import RunError
from cluster.execution.ray_internals import ControllerCallback

logger = logging.getLogger(__name__)

MIN_DRIVER = 580
"""Oldest driver branch that runs CUDA 13, the version in torch's packages (NVIDIA, "CUDA
Compatibility", table of minor version compatibility)."""
CHECK_SECONDS = 60.0
"""Time limit of the check of a node."""


class DriverCheck(ControllerCallback):
    """Callback that ends a run if a node's NVIDIA driver is unusable.

    Otherwise the workers would fail at each restart, while their machines are paid for.
    """

    def __init__(self) -> None:
        self._checked: set[str] = set()

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Check the GPU nodes that were not checked before.

        Raises:
            RunError: a node has no working driver, or one that is too old.
        """
        nodes = [
            node
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("GPU", 0) > 0
            and node["NodeID"] not in self._checked
        ]  # fmt: skip
        problems = {node["NodeID"]: _on_node(node["NodeID"]) for node in nodes}
        for node in nodes:
            try:
                problem = ray.get(problems[node["NodeID"]], timeout=CHECK_SECONDS)
            except RayError as error:  # a lost or busy node is another problem than its driver
                logger.warning("no check of %s: %s", node["NodeManagerAddress"], error)
                continue
            if problem:
                raise RunError(f"node {node['NodeManagerAddress']}: {problem}")
            self._checked.add(node["NodeID"])


def _on_node(node: str) -> Any:
    """Start the check on a node; return Ray's reference of its result."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(driver_problem)
    return task.options(scheduling_strategy=strategy).remote()


def driver_problem() -> str:
    """Return why torch cannot use this node's GPUs, or an empty text."""
    remedy = f"torch {torch.__version__} needs NVIDIA driver {MIN_DRIVER} or newer on each GPU node"
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=CHECK_SECONDS / 2, check=True,
        )  # fmt: skip
        version = answer.stdout.split()[0]
        is_new_enough = int(version.partition(".")[0]) >= MIN_DRIVER
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
        return f"nvidia-smi reports no driver ({type(error).__name__}: {error}); {remedy}"
    return "" if is_new_enough else f"its NVIDIA driver is {version}; {remedy}"
