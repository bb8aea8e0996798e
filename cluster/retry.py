"""Retries of network calls, with back-off and a time limit."""

import math
import random
import time
from threading import Event


class Retry:
    """Exponential back-off with jitter and a time limit.

    The caller makes the calls and decides which errors are transient:

        retry = Retry(timeout_seconds=60)
        while True:
            try:
                return call()
            except ConnectionError:
                if not retry.wait():
                    raise
    """

    def __init__(
        self,
        *,
        timeout_seconds: float = math.inf,
        pause_seconds: float = 0.5,
        max_pause_seconds: float = 5.0,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._first_pause = pause_seconds
        self._max_pause = max_pause_seconds
        self.reset()

    def reset(self) -> None:
        """Restart the pauses and the time limit, as after a success."""
        self._pause = self._first_pause
        self._deadline = time.monotonic() + self._timeout_seconds

    def wait(self, cancelled: Event | None = None) -> bool:
        """Wait before the next attempt.

        Args:
            cancelled: an event that ends the wait.

        Returns:
            Whether to try again: the pause fits into the time limit, and was not cancelled.
        """
        pause = self._pause * random.uniform(0.5, 1)
        self._pause = min(2 * self._pause, self._max_pause)
        if time.monotonic() + pause > self._deadline:
            return False
        if cancelled is not None:
            return not cancelled.wait(pause)
        time.sleep(pause)
        return True
