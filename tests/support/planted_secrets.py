"""Planted secrets, and a search for them in everything a run writes."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def objects(store: Any, bucket: str) -> Iterator[tuple[str, bytes]]:
    """All objects of a bucket, of which PyTorch's archives are not compressed."""
    for page in store.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            yield (
                f"s3: {entry['Key']}",
                store.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read(),
            )


def files(*folders: Path) -> Iterator[tuple[str, bytes]]:
    """All files below some folders."""
    for folder in folders:
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):  # Ray tidies up
                if path.is_file() and not path.is_symlink():
                    yield str(path), path.read_bytes()


def findings(
    secrets: Sequence[str], places: Iterable[tuple[str, bytes]], looked_for: Sequence[str]
) -> list[str]:
    """Return the files with a secret; check that expected ones exist."""
    found, names = [], []
    for name, content in places:
        names.append(name)
        found += [f"{secret} in {name}" for secret in secrets if secret.encode() in content]
    for part in looked_for:
        assert any(part in name for name in names), part
    return found
