"""Points on a small grid, for tests of fronts and hypervolumes."""

from hypothesis import strategies as st

from tuning.pareto import Direction

NUM_LEVELS = 5


objectives = st.integers(1, 3).flatmap(
    lambda count: st.tuples(
        st.lists(st.tuples(*[st.integers(0, NUM_LEVELS - 1)] * count), max_size=8),
        st.tuples(*[st.sampled_from(["minimize", "maximize"])] * count),
    )
)
"""Points on a small grid, so that ties and equal points are common; and directions."""


def is_no_worse(one, other, directions: tuple[Direction, ...]) -> bool:
    return all(
        a <= b if direction == "minimize" else a >= b
        for a, b, direction in zip(one, other, directions, strict=True)
    )
