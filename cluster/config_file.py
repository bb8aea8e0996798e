"""Config files: YAML without duplicate settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.paths import absolute_path

SCRIPTS = {
    **dict.fromkeys(("space", "base_config", "overrides", "cost_limits", "objective"), "tune"),
    **dict.fromkeys(("model", "data", "train", "cluster", "evaluation", "registry"), "train"),
}
"""Script whose config files contain a section, for the error about a file of another script."""


def split_config_option(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Separate `--config` from the other arguments.

    Returns:
        The config file, None without the option, and the other arguments.

    Raises:
        ValueError: the option is given twice or without a file.
    """
    files: list[str] = []
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        option, equals, file = argument.partition("=")
        if option != "--config":
            others.append(argument)
            continue
        file = file if equals else next(remaining, "")
        if not file or (not equals and file.startswith("--")):
            raise ValueError("--config needs a YAML file of settings, as in --config FILE")
        files.append(file)
    if len(files) > 1:
        raise ValueError(
            f"--config is given more than once ({', '.join(files)}); combine the files, and set "
            "single settings as --section.field=value"
        )
    return (Path(absolute_path(files[0])) if files else None), others


def read_config_file(path: Path) -> Any:
    """Read a YAML file of settings.

    Raises:
        ValueError: the file cannot be read, is not YAML, or has a setting twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--config is {path}: not UTF-8 text ({error.reason}); save it as UTF-8"
        ) from error
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ValueError(f"--config is {path}: {reason}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    # Recursion: an alias that contains itself; ValueError: an impossible date.
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        sentence = " ".join(str(error).split())
        raise ValueError(f"{path} is not YAML: {sentence}") from error
    _check_duplicates(node, str(path), "", {})
    return content


def _check_duplicates(node: Any, path: str, prefix: str, lines: dict[str, int]) -> None:
    """Check that no setting occurs twice; YAML itself keeps the last one.

    Args:
        node: YAML node of the file or of a section.
        path: name of the file.
        prefix: dotted name of the section, with a dot at the end.
        lines: line number of each setting so far.
    """
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if name in lines:
            raise ValueError(
                f"{path} contains {name} twice, in lines {lines[name]} and {line}: keep one of them"
            )
        lines[name] = line
        _check_duplicates(value, path, f"{name}.", lines)
