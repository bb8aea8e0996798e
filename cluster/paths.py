"""Path settings: resolved once, in the process and folder where the user gives them."""

import os
import re
from collections.abc import Callable
from dataclasses import Field, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

_KIND = "path"

_Settings = TypeVar("_Settings")


def path_field(default: str, kind: Literal["driver", "node", "config"] = "driver") -> Any:
    """Declare a setting that is a path or, where the setting allows it, a URI.

    Args:
        default: default value; empty: the setting may be unset.
        kind: driver: relative to the folder of the command; node: like driver, but `~` is the home
            folder of each node; config: in a config file relative to that file.
    """
    return field(default=default, metadata={_KIND: kind})


def path_kind(entry: "Field[Any]") -> str | None:
    """Return the kind of a path setting, None for other settings."""
    return entry.metadata.get(_KIND)


def absolute_path(path: str, folder: Path | None = None) -> str:
    """Return a path in absolute form, with `~` expanded; URIs lose slashes at their end.

    Args:
        path: path or URI.
        folder: folder that a relative path starts from; None: the working folder.

    Raises:
        ValueError: `~` names an unknown user.
    """
    if not path or "://" in path:
        return re.sub(r"(?<=[^:/])/+$", "", path)
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}; write the path in full") from error
    return str((folder or Path.cwd()).absolute() / expanded)


def with_absolute_paths(settings: _Settings) -> _Settings:
    """Return settings with every path setting in absolute form."""
    return _map_paths(
        settings,
        lambda path, kind: path if kind == "node" and path.startswith("~") else absolute_path(path),
    )


def with_portable_paths(settings: _Settings) -> _Settings:
    """Return settings with the paths below the working folder in relative form.

    A submitted job runs in another folder each time, and a project may be moved.
    """
    folder = Path.cwd()

    def relative(path: str, _: str) -> str:
        return os.path.relpath(path, folder) if Path(path).is_relative_to(folder) else path

    return _map_paths(settings, relative)


def _map_paths(settings: _Settings, change: Callable[[str, str], str]) -> _Settings:
    assert is_dataclass(settings)
    changes: dict[str, Any] = {}
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        if is_dataclass(value):
            changes[entry.name] = _map_paths(value, change)
        elif (kind := path_kind(entry)) is not None:
            changes[entry.name] = change(value, kind)
    return replace(settings, **changes)  # type: ignore[return-value]
