"""Progress of a long operation, as a bar or as log lines.

The bar is for terminals; log lines are for files.
"""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_SECONDS = 30.0
"""Interval of the log lines."""

_Item = TypeVar("_Item")


class Progress:
    """Context that counts images or bytes up to a total."""

    def __init__(
        self, title: str, total: int, *, unit: Literal["image", "byte"] = "image", done: int = 0
    ) -> None:
        """Start counting.

        Args:
            title: name of the operation.
            total: images or bytes in all.
            unit: unit of the count.
            done: count at the start, from an interrupted operation.
        """
        self.title = title
        self.total = total
        self.done = self._first = min(done, total)
        self._unit = unit
        self._began = self._logged = time.monotonic()
        self._bar = tqdm(
            total=total, initial=self.done, desc=title, unit=unit, unit_scale=unit == "byte",
            smoothing=0, disable=not sys.stderr.isatty(),
        )  # fmt: skip

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def add(self, count: int) -> None:
        """Count, and log the rate and the time left every `LOG_SECONDS`."""
        self.done += count
        self._bar.update(count)
        if self._bar.disable and time.monotonic() - self._logged > LOG_SECONDS:
            self.log()

    def counted(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield the items, and count each one when the next is requested."""
        for item in items:
            yield item
            self.add(1)

    def log(self) -> None:
        """Log the count, the rate and the time left.

        Rate and time left are omitted until something has been counted.
        """
        self._logged = time.monotonic()
        rate = (self.done - self._first) / max(self._logged - self._began, 1e-6)
        done, total, per_second = self.done, self.total, f"{rate:.0f} images/s"
        text = f"{done} of {total} images"
        if self._unit == "byte":
            text, per_second = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB", f"{rate / 1e6:.0f} MB/s"
        if rate:
            text += f", {per_second}, {max(total - done, 0) / rate:.0f} s left"
        logger.info("%s: %s", self.title, text)
