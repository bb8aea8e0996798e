"""Class names in the order of their labels, read from a file."""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.data.sources.files import nfc

_BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
LISTED_NAMES = 5
"""Number of names in a message."""


def read_matching_index(path: str, found: Sequence[str], root: str) -> tuple[str, ...]:
    """Return the names of the class folders in label order.

    Args:
        path: the file; empty: the order of `found`.
        found: names of the class folders in NFC.
        root: folder of the class folders, for messages.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has a wrong form, or a class folder is missing in it.
    """
    if not path:
        return tuple(found)
    names = read_class_index(path, found)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ValueError(
            f"{root} has {len(unknown)} class folders that are not in data.class_index {path}: "
            f"{', '.join(map(repr, unknown[:LISTED_NAMES]))}; its first names are "
            f"{', '.join(map(repr, names[:LISTED_NAMES]))}; add the folders' names to the file, or "
            "remove the folders"
        )
    return names


def read_class_index(path: str, found: Sequence[str] = ()) -> tuple[str, ...]:
    """Read the names of class folders in the order of their labels.

    A text file has one name per line, which may be followed by a description as in Kaggle's
    "n01440764 tench, Tinca tinca"; lines that begin with # are comments. A JSON file is a list,
    `{"0": "cat", ...}`, or Keras' `{"0": ["n01440764", "tench"], ...}`.

    Args:
        path: the file.
        found: names of the class folders, which tell a name of several words from a description.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another form, or a duplicate name.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"data.class_index is {path}: no such file; correct the path")
    try:
        text = _decode(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"data.class_index {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.class_index {path} is not text in UTF-8 or UTF-16 ({error.reason}); save it in "
            "UTF-8"
        ) from error
    is_json = path.lower().endswith(".json") or text.lstrip()[:1] in ("[", "{")
    columns = _json_columns(path, text) if is_json else _text_columns(text, found)
    candidates = [tuple(nfc(name) for name in names) for names in columns]
    names = max(candidates, key=lambda names: len(set(found) & set(names)))
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    if duplicates or not names:
        twice = ", ".join(map(repr, duplicates[:LISTED_NAMES])) + " twice"
        raise ValueError(
            f"data.class_index {path} must contain every name once, "
            f"but contains {twice if duplicates else 'no name'}"
        )
    return names


def _decode(content: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding)
    return content.decode()


def _text_columns(text: str, found: Sequence[str]) -> list[list[str]]:
    """Return the lines, and their first fields by several separators."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and (not line.startswith("#") or nfc(line) in found)]
    words = [line.split()[0] for line in lines]
    fields = [
        [next(csv.reader([line], delimiter=separator))[0].strip() for line in lines]
        for separator in (",", "\t", ";")
    ]
    return [lines, words, *fields]


def _json_columns(path: str, text: str) -> list[list[str]]:
    """Return the names, or the columns of [folder, description] for each class."""
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"data.class_index {path} is not a list of names: {error}") from error
    if isinstance(entries, dict):
        entries = _ordered(path, entries)
    if not isinstance(entries, list):
        entries = [None]
    rows: list[list[Any]] = [entry if isinstance(entry, list) else [entry] for entry in entries]
    if not all(row and all(isinstance(name, str) for name in row) for row in rows):
        raise ValueError(f"data.class_index {path} must be a list of names in label order")
    width = min((len(row) for row in rows), default=1)
    return [[row[column] for row in rows] for column in range(width)]


def _ordered(path: str, entries: dict[str, Any]) -> list[Any]:
    """Return the names in an object by label: {"0": name}, {name: 0}."""
    if entries and all(type(value) is int for value in entries.values()):
        entries = {str(label): name for name, label in entries.items()}
    if set(entries) != {str(label) for label in range(len(entries))}:
        raise ValueError(
            f"data.class_index {path} is not a list of names: the labels must be 0 to "
            f"{len(entries) - 1}, got {', '.join(map(repr, list(entries)[:LISTED_NAMES]))}"
        )
    return [entries[str(label)] for label in range(len(entries))]
