"""Findings of the pre-flight checks of a run: facts, and missing requirements."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cluster.errors import EXPECTED_ERRORS


@dataclass(frozen=True)
class Finding:
    """Fact about a run, or a requirement that is missing."""

    name: str
    """Heading of a fact; empty for a missing requirement."""
    text: str

    @property
    def is_missing(self) -> bool:
        """Return whether a requirement is missing."""
        return not self.name


def missing(sentences: Iterable[str]) -> list[Finding]:
    """Return missing requirements, one per sentence."""
    return [Finding("", sentence) for sentence in sentences]


def check(*checks: Callable[[], object]) -> list[Finding]:
    """Call checks in order, up to the first expected error.

    Returns:
        The error as a missing requirement; empty if all checks pass.
    """
    try:
        for each in checks:
            each()
    except EXPECTED_ERRORS as error:
        return missing([str(error)])
    return []


def format_bytes(count: int) -> str:
    """Format a number of bytes with a decimal unit."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:,} bytes"
