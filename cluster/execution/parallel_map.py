"""Many independent pieces of work over the CPUs of a Ray cluster."""

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
    """Call `function` on every item, one call a CPU; give the results as they come, with numbers.

    A call that is lost with its node is made again, up to three times.

    Args:
        cluster: where, unless Ray is connected already.
        function: importable; Ray sends its name, not its code.
        items: what it is called with.

    Raises:
        Exception: what `function` raised first; all other calls are given up.
        RunError: calls were lost again and again.
    """
    with connected(cluster):
        yield from _spread(function, items)


def _spread(
    function: Callable[[_Item], _Result], items: Sequence[_Item]
) -> Generator[tuple[int, _Result]]:
    remote = ray.remote(num_cpus=1, max_retries=3)(function)
    waiting: dict[Any, int] = {}
    submitted = 0
    try:
        while waiting or submitted < len(items):
            # Two for every CPU there is now, so that none has to wait for this process.
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
        raise RunError(f"a task was lost more than three times: {error}") from error
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
