"""Measurements of the GPU benchmark, and the file of their results."""

import json
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Item:
    """Measurement with a name; its values are numbers, texts or booleans."""

    part: str
    name: str
    measure: Callable[[], dict[str, Any] | None]
    """Function that measures; None: interrupted at the deadline, to be resumed."""

    @property
    def key(self) -> str:
        """Key of the item in the file of results."""
        return f"{self.part}: {self.name}"


class Results:
    """Results by item, saved after every item."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.values: dict[str, dict[str, Any]] = {}
        if file.exists():
            self.values = json.loads(file.read_text())

    def run(self, items: Iterable[Item], deadline: float) -> bool:
        """Measure the items that have no result yet, until the deadline.

        Args:
            items: the items, in order.
            deadline: value of `time.monotonic()` after which no item starts.

        Returns:
            True if all items have a result.
        """
        for item in items:
            if item.key in self.values:
                continue
            if time.monotonic() > deadline:
                return False
            started = time.monotonic()
            try:
                values = item.measure()
            except Exception as error:  # the other items are still worth their time
                traceback.print_exc()
                values = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            if values is None:
                return False
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.save(item.key, {**values, "seconds": round(time.monotonic() - started, 1)})
            print(f"{item.key}: {json.dumps(self.values[item.key])}", flush=True)
        return True

    def save(self, key: str, values: dict[str, Any]) -> None:
        """Store the values of an item and write the file."""
        self.values[key] = values
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.values, indent=1))
        part.replace(self.file)

    def table(self) -> str:
        """Format all results as a Markdown table, one row per item."""
        lines = ["| item | result |", "|---|---|"]
        for key, values in self.values.items():
            shown = ", ".join(f"{name} {_format(value)}" for name, value in values.items())
            lines.append(f"| {key} | {shown} |")
        return "\n".join(lines)


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
