"""Back-off: growing pauses, a time limit, cancellation and a new start."""

import time
from threading import Event

import pytest

from cluster import retry
from cluster.retry import Retry


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were made, on a clock that only they move."""
    made: list[float] = []
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: high)
    monkeypatch.setattr(retry.time, "monotonic", lambda: sum(made))
    monkeypatch.setattr(retry.time, "sleep", made.append)
    return made


def test_pauses_double_up_to_the_longest_and_end_before_the_limit(pauses):
    attempts = Retry(timeout_seconds=20, pause_seconds=0.5, max_pause_seconds=5)
    while attempts.wait():
        pass
    assert pauses == [0.5, 1, 2, 4, 5, 5]


def test_reset_starts_from_the_first_pause_and_the_full_limit(pauses):
    attempts = Retry(timeout_seconds=4, pause_seconds=1, max_pause_seconds=2)
    assert [attempts.wait() for _ in range(3)] == [True, True, False]
    attempts.reset()
    assert [attempts.wait() for _ in range(3)] == [True, True, False]
    assert pauses == [1, 2, 1, 2]


def test_cancelled_wait_returns_at_once():
    cancelled = Event()
    cancelled.set()
    began = time.monotonic()
    assert not Retry(pause_seconds=60, max_pause_seconds=60).wait(cancelled)
    assert time.monotonic() - began < 5
