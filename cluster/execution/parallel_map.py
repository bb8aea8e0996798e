"""Parallel map over the CPUs of a Ray cluster."""

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.config import ClusterConfig
from cluster.errors import RunError
from cluster.execution.connection import connected

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def parallel_map(
    cluster: ClusterConfig, function: Callable[[_Item], _Result], items: Sequence[_Item]
) -> Generator[tuple[int, _Result]]:
    """Yield index and result of `function(item)` for every item.

    Each call occupies one CPU. Ray retries a call that was lost with its node up to three times.

    Args:
        cluster: describes the local cluster that is started if no cluster is connected.
        function: an importable function; Ray sends its name instead of its code.
        items: arguments of the calls.

    Raises:
        Exception: the first exception of `function`; all other calls are cancelled.
        RunError: a call was lost more than three times.
    """
    # Each call computes all the time, so more calls than CPUs would only take memory.
    with connected(cluster, oversubscribe=False):
        yield from _map_on_ray(function, items)


def _map_on_ray(
    function: Callable[[_Item], _Result], items: Sequence[_Item]
) -> Generator[tuple[int, _Result]]:
    remote = ray.remote(num_cpus=1, max_retries=3)(function)
    waiting: dict[Any, int] = {}
    submitted = 0
    try:
        while waiting or submitted < len(items):
            # Two calls for each CPU of the current nodes, so that no CPU waits for this process.
            ahead = 2 * max(int(ray.cluster_resources().get("CPU", 1)), 1)
            while submitted < len(items) and len(waiting) < ahead:
                waiting[remote.remote(items[submitted])] = submitted
                submitted += 1
            finished, _ = ray.wait(list(waiting), timeout=10)
            for reference in finished:
                yield waiting.pop(reference), ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise RunError(f"a Ray task was lost more than three times: {error}") from error
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
