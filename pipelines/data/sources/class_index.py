"""Class names in the order of their labels, read from a file."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def read_class_index(path: str) -> tuple[str, ...]:
    """Read the names of class folders in the order of their labels.

    A text file has one name per line; a JSON file is a list, or Keras'
    `{"0": ["n01440764", ...], ...}`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another form, or a duplicate name.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"data.class_index is {path}: no such file")
    text = Path(path).read_text()
    if path.endswith(".json"):
        try:
            entries = json.loads(text)
            if isinstance(entries, dict):
                entries = [entries[str(label)][0] for label in range(len(entries))]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"data.class_index {path} is not a list of names: {error!r}"
            ) from error
    else:
        entries = [line.strip() for line in text.splitlines() if line.strip()]
    if not isinstance(entries, list) or not all(isinstance(name, str) for name in entries):
        raise ValueError(f"data.class_index {path} must be a list of names in label order")
    duplicates = [name for name, count in Counter(entries).items() if count > 1]
    if duplicates or not entries:
        raise ValueError(
            f"data.class_index {path} must contain every name once, "
            f"but contains {', '.join(duplicates[:5]) + ' twice' if duplicates else 'no name'}"
        )
    return tuple(entries)


def read_matching_index(path: str, found: Sequence[str], root: str) -> tuple[str, ...]:
    """Read a class index and check it against the folders.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has a wrong form, or a class folder is missing in it.
    """
    names = read_class_index(path)
    unknown = sorted(set(found) - set(names))
    if unknown:
        raise ValueError(
            f"{root} has {len(unknown)} class folders that are not in data.class_index {path}: "
            f"{', '.join(unknown[:5])}; add them to the file or remove the folders"
        )
    return names
