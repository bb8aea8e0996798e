"""Command line: settings from a YAML file and options, error texts, logging and exit status."""

import difflib
import logging
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, auto_cli, set_parsing_settings

from cluster.errors import RunError, TrackingError

logger = logging.getLogger(__name__)

PACKAGES = ("ranet", "cluster", "tuning", "pipelines")

_Settings = TypeVar("_Settings")


def read_settings(kind: type[_Settings], argv: Sequence[str] | None = None) -> _Settings:
    """Read settings of any kind as `read_run` does, and leave with status 2 as it does."""
    try:
        return parse_settings(kind, sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


def parse_settings(kind: type[_Settings], arguments: Sequence[str]) -> _Settings:
    """Make settings from command-line arguments.

    Raises:
        ValueError: one sentence on what is wrong with them.
    """
    switches = {"--fresh": "--fresh=true", "--dry-run": "--dry_run=true"}
    full = [switches.get(text, text) for text in arguments]
    _check_files(kind, full)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the help of every field
    try:
        settings = auto_cli(
            kind, args=full, as_positional=False, exit_on_error=False, allow_abbrev=False
        )
    except (ArgumentError, ValueError) as error:  # ValueError: from a failing __post_init__
        raise ValueError(_readable(str(error), kind)) from None
    assert isinstance(settings, kind)
    return settings


def configure_logging(*, only_errors: bool = False) -> None:
    """Send our log to stderr, and of the libraries' only warnings."""
    logging.basicConfig(
        level=logging.ERROR if only_errors else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.ERROR if only_errors else logging.INFO)
    logging.getLogger("mlflow").setLevel(logging.WARNING)


@contextmanager
def main_guard() -> Iterator[None]:
    """End the process with one sentence where the user, or the machine, is the cause of an error.

    Status 1 for an error, 130 for Ctrl-C and for SIGTERM, which a stopped job gets. An error of
    our own keeps its traceback.
    """
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except (RunError, TrackingError, ValueError, OSError) as error:
        logger.debug("traceback", exc_info=error)
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("stopped; start it again under the same name to go on\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def _check_files(kind: type, arguments: Sequence[str]) -> None:
    """Refuse config files whose sections hold no settings; jsonargparse takes some for empty."""
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        option, _, path = argument.partition("=")
        if option == "--config" and Path(path or following).is_file():
            file = Path(path or following)
            try:
                settings = yaml.safe_load(file.read_bytes())
            except yaml.YAMLError as error:
                raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
            _check_section(kind, settings, str(file))


def _check_section(kind: type, settings: Any, where: str) -> None:
    if not isinstance(settings, dict):
        raise ValueError(f"{where} must hold settings, as in name: value; got {settings!r:.100}")
    for entry in fields(kind):
        if is_dataclass(entry.type) and entry.name in settings:
            assert isinstance(entry.type, type)
            _check_section(entry.type, settings[entry.name], f"{where}: {entry.name}")


def _readable(message: str, kind: type) -> str:
    """Say in one line which option was wrong, and what it may have been meant to be."""
    message = re.sub(r'^Parser key "([^"]+)":', r"\1:", " ".join(message.split()))
    message = re.sub(r"Expected a <class '(\w+)'>\. Got value:", r"must be \1, got", message)
    message = re.sub(
        r"Expected a typing\.Literal\[(.*?)\]\. Got value:", r"must be one of \1, got", message
    )
    unknown = re.match(
        r"(?:Group '(?P<group>\S+)' does not accept option|Option) '(?P<key>\S+)'"
        r"|unrecognized arguments: --(?P<option>[^\s=]+)",
        message,
    )
    if unknown is None:
        return message
    group = f"{unknown['group']}." if unknown["group"] else ""
    name = unknown["option"] or f"{group}{unknown['key']}"
    similar = difflib.get_close_matches(name, _names(kind), n=1)
    hint = f"did you mean {similar[0]}?" if similar else "see --help"
    return f"{name} is not a setting; {hint}"


def _names(kind: type, prefix: str = "") -> list[str]:
    """Dotted names of all settings of a kind, and of its sections."""
    names: list[str] = []
    for entry in fields(kind):
        names.append(f"{prefix}{entry.name}")
        if is_dataclass(entry.type):
            assert isinstance(entry.type, type)
            names += _names(entry.type, f"{prefix}{entry.name}.")
    return names
