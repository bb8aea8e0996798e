"""Progress of long tasks: a bar in a terminal, log lines elsewhere."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_SECONDS = 30.0

_Item = TypeVar("_Item")


class Progress:
    """Context manager that counts images up to a total."""

    def __init__(self, title: str, total: int) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self._begun = self._logged = time.monotonic()
        self._bar = tqdm(
            total=total, desc=title, unit="image", smoothing=0, disable=not sys.stderr.isatty()
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, count: int) -> None:
        """Count images, and log the progress every 30 seconds."""
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._logged > LOG_SECONDS:
            self._logged = now
            rate = self.done / (now - self._begun)
            logger.info(
                "%s: %d of %d images, %.0f images/s, %.0f s left",
                self.title, self.done, self.total, rate, (self.total - self.done) / rate,
            )  # fmt: skip

    def counted(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield the items, and count each once the next is requested."""
        for item in items:
            yield item
            self.add(1)
