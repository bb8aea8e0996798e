"""Command line of all scripts: parser, error texts, logging and exit status."""

import argparse
import difflib
import logging
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_parsing_settings,
)

from cluster.config import in_submitted_job
from cluster.config_file import SCRIPTS, read_config_file, split_config_option
from cluster.errors import EXPECTED_ERRORS
from cluster.paths import absolute_path, path_kind, with_absolute_paths

logger = logging.getLogger(__name__)

PACKAGES = ("ranet", "cluster", "tuning", "pipelines")

RENAMED = {
    # settings of a run
    "data.root": "data.source_dir",
    "data.folder": "data.prepared_dir",
    "data.stored_size": "data.max_side",
    "data.storage": "data.image_format",
    "data.order": "data.shuffle",
    "data.crop": "data.augment.crop",
    "data.flip": "data.augment.flip",
    "train.micro_batch": "train.micro_batch_size",
    "train.checkpoint_steps": "train.checkpoint_every_steps",
    "train.image_sizes": "train.progressive_sizes",
    "train.exit_loss_weights": "train.loss.exit_weights",
    "train.exit_loss_shift": "train.loss.curriculum",
    "train.label_smoothing": "train.loss.label_smoothing",
    "train.ema_decay": "train.ema.decay",
    "cluster.cache_folder": "cluster.cache_dir",
    "cluster.cache_bytes": "cluster.cache_max_bytes",
    "cluster.max_failures": "cluster.max_consecutive_failures",
    "cluster.resize_seconds": "cluster.elastic_check_seconds",
    "cluster.storage": "cluster.storage_path",
    "registry.budgets": "evaluation.budget_fractions",
    "registry.model": "registry.model_name",
    # settings of a sweep
    "run": "base_config",
    "settings": "overrides",
    "window": "cost_limits",
    "window.mult_adds": "cost_limits.mult_adds",
    "window.first_exit": "cost_limits.first_exit_mult_adds",
    "window.parameters": "cost_limits.parameters",
    "window.memory": "cost_limits.memory_bytes",
    "cost_limits.first_exit": "cost_limits.first_exit_mult_adds",
    "cost_limits.memory": "cost_limits.memory_bytes",
    "stopping": "early_stopping",
    "stopping.method": "early_stopping.method",
    "stopping.first_epoch": "early_stopping.first_epoch",
    "stopping.factor": "early_stopping.factor",
    "stopping.brackets": "early_stopping.brackets",
    "search": "sampler",
    "objective.names": "objective.metrics",
    "objective.budgets": "objective.budgets_mult_adds",
    "objective.area_range": "objective.auc_range_mult_adds",
    # options of an invocation
    "fresh": "--new-attempt",
    "dry_run": "--dry-run",
}
"""New name by old name of a setting; used only for the error that names the new one."""

_Settings = TypeVar("_Settings")


class _HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with types, defaults and the unwrapped description."""


class CommandLine(ArgumentParser):
    """Command line of a script: settings, options of the invocation, and positionals.

    Settings come from a YAML file and from options. Options of the invocation and positionals are
    declared with `add_argument`; they are not settings, and config files must not contain them.
    """

    def __init__(
        self, description: str | None = None, settings: type | None = None, **kwargs: Any
    ) -> None:
        # The docstrings below the fields are their help texts.
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
        if description is not None:
            kwargs["formatter_class"] = _HelpFormatter
        if settings is not None:
            kwargs.setdefault(
                "usage", "%(prog)s [--config FILE] [OPTION] [--section.field=value ...]"
            )
        # jsonargparse makes parsers of nested types with this class and passes exit_on_error.
        kwargs.setdefault("exit_on_error", False)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(description=description, **kwargs)
        self.settings_type = settings
        if settings is not None:
            self.add_argument("--config", action="config", help="YAML file of settings")
            self.add_class_arguments(
                settings, as_group=False, as_positional=False, sub_configs=True
            )
            self.epilog = (
                "Options override the file. Paths are relative to the working folder. "
                f"--NAME=null unsets a setting: {', '.join(unsettable_settings(settings))}."
            )

    def read(
        self,
        argv: Sequence[str] | None = None,
        check: Callable[[Namespace], None] = lambda options: None,
    ) -> Namespace:
        """Parse the command line, or exit with status 2.

        Args:
            argv: Command line without the name of the script; None: `sys.argv`.
            check: Further check of the parsed options; raises ValueError.

        Returns:
            Options and positionals, and the settings as `settings`.
        """
        try:
            options = self.parse(sys.argv[1:] if argv is None else argv)
            check(options)
        except ValueError as error:
            sys.stderr.write(f"error: {error}\n")
            raise SystemExit(2) from None
        return options

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """Parse arguments as `read` does.

        Raises:
            ValueError: An argument is wrong; the message is one sentence.
        """
        if self.settings_type is None:
            try:
                return self.parse_args(list(arguments))
            except (ArgumentError, ValueError) as error:
                raise ValueError(self._explain(str(error))) from None
        file, others = split_config_option(arguments)
        content = {} if file is None else self._read_config_file(file)
        # Options override the file, wherever the file stands among them.
        ordered = [*([] if file is None else [f"--config={file}"]), *self._without_nulls(others)]
        try:
            options = self.parse_args(ordered)
            _unset_or_reject_nulls(self.settings_type, options)
            # Dataclasses check their values here.
            values = self.instantiate(options)
            names = [entry.name for entry in fields(self.settings_type)]
            settings = self.settings_type(**{name: values.pop(name) for name in names})
        except (ArgumentError, ValueError) as error:
            raise ValueError(self._explain(str(error))) from None
        if file is not None:
            settings = _resolve_beside_file(settings, content, others, file)
        values["settings"] = with_absolute_paths(settings)
        return values

    def dump(self, cfg: Namespace, **kwargs: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the settings as YAML, without options of the invocation."""
        settings = cfg.clone()
        for name in self._option_names():
            settings.pop(name, None)
        return super().dump(settings, **{**kwargs, "skip_validation": True})

    def _without_nulls(self, arguments: Sequence[str]) -> list[str]:
        """Write null as an empty list for settings that are lists, which jsonargparse requires."""
        assert self.settings_type is not None
        lists = {f"--{name}" for name, entry in _leaves(self.settings_type) if entry.default == ()}
        written = list(arguments)
        for position, argument in enumerate(written):
            option, equals, value = argument.partition("=")
            if option in lists and equals and value == "null":
                written[position] = f"{option}=[]"
            elif option in lists and not equals and written[position + 1 :][:1] == ["null"]:
                written[position + 1] = "[]"
        return written

    def _option_names(self) -> dict[str, str]:
        """Return the command-line spelling of options and positionals, by name."""
        if self.settings_type is None:
            settings = set()
        else:
            settings = {name.split(".")[0] for name in setting_names(self.settings_type)}
        return {
            action.dest: next(iter(action.option_strings), action.dest)
            for action in self._actions
            if action.dest.split(".")[0] not in {*settings, "config", "print_config", "help"}
        }

    def _read_config_file(self, file: Path) -> dict[str, Any]:
        """Read a config file, and check what jsonargparse would ignore or misname."""
        assert self.settings_type is not None
        content = read_config_file(file)
        _check_section(self.settings_type, content, str(file))
        for name, written in self._option_names().items():
            if name in content:
                raise ValueError(
                    f"{file} contains {name}, which is not a setting: it belongs on the "
                    f"command line ({written})"
                )
        own = {entry.name for entry in fields(self.settings_type)}
        if foreign := [name for name in content if name in SCRIPTS and name not in own]:
            raise ValueError(
                f"{file} contains {foreign[0]}: it is a config of pipelines/"
                f"{SCRIPTS[foreign[0]]}.py; run that script, or name another file"
            )
        return content

    def _explain(self, message: str) -> str:
        """Rewrite an error of jsonargparse as one clear line."""
        message = re.sub(r'^Parser key "([^"]+)":', r"\1:", " ".join(message.split()))
        message = re.sub(r"Expected a <class '(\w+)'>\. Got value:", r"must be \1, got", message)
        message = re.sub(
            r"Expected a typing\.Literal\[(.*?)\]\. Got value:", r"must be one of \1, got", message
        )
        if missing := re.match(r"the following arguments are required: (.*)", message):
            return f"{missing[1]} is required; see --help"
        unknown = re.match(
            r"(?:Group '(?P<group>\S+)' does not accept option|Option) '(?P<key>\S+)'"
            r"|unrecognized arguments: --(?P<option>[^\s=]+)",
            message,
        )
        if unknown is None:
            return message
        group = f"{unknown['group']}." if unknown["group"] else ""
        return self._explain_unknown(unknown["option"] or f"{group}{unknown['key']}")

    def _explain_unknown(self, name: str) -> str:
        settings = setting_names(self.settings_type) if self.settings_type is not None else []
        options = [text for action in self._actions for text in action.option_strings]
        known = {*settings, *options}
        if RENAMED.get(name.replace("-", "_")) in known:
            return f"{name} was renamed to {RENAMED[name.replace('-', '_')]}"
        similar = difflib.get_close_matches(name, settings, n=1) or difflib.get_close_matches(
            f"--{name}", options, n=1
        )
        hint = f"did you mean {similar[0]}?" if similar else "see --help"
        if self.settings_type is None:
            return f"--{name} is not an option; {hint}"
        return f"{name} is not a setting; {hint}"


def read_settings(kind: type[_Settings], argv: Sequence[str] | None = None) -> _Settings:
    """Parse settings from the command line, or exit with status 2."""
    return CommandLine(settings=kind).read(argv).settings


def parse_settings(kind: type[_Settings], arguments: Sequence[str]) -> _Settings:
    """Parse settings from command-line arguments.

    Raises:
        ValueError: An argument is wrong; the message is one sentence.
    """
    return CommandLine(settings=kind).parse(arguments).settings


def setting_names(kind: type, prefix: str = "") -> list[str]:
    """Return the dotted setting names of a dataclass and its sections."""
    names: list[str] = []
    for entry in fields(kind):
        names.append(f"{prefix}{entry.name}")
        if is_dataclass(entry.type):
            assert isinstance(entry.type, type)
            names += setting_names(entry.type, f"{prefix}{entry.name}.")
    return names


def python_command() -> str:
    """Return the interpreter for commands that users copy, quoted for a shell.

    In a submitted job it is `python`: the user does not work on the node of the job.
    """
    python = Path(sys.executable)
    if in_submitted_job() or not python.is_absolute():
        return "python"
    folder = Path.cwd()
    return shlex.quote(str(python.relative_to(folder) if python.is_relative_to(folder) else python))


def script_command(name: str | None = None) -> str:
    """Return the command that runs a script of `pipelines/` from the working folder.

    Args:
        name: file name of the script; None: the script of this process.
    """
    script = Path(name or Path(sys.argv[0]).name)
    path = Path(__file__).parents[1] / "pipelines" / script
    folder = Path.cwd()
    shown = path.relative_to(folder) if path.is_relative_to(folder) else path
    return f"{python_command()} {shlex.quote(str(shown))}"


def configure_logging(*, only_errors: bool = False) -> None:
    """Log this project at INFO, libraries at WARNING, to stderr.

    Args:
        only_errors: Log only errors, of this project and of libraries.
    """
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
def main_guard(
    interrupted: str = "interrupted; run it again under the same name to resume",
) -> Iterator[None]:
    """Turn expected errors into a one-sentence message and an exit status.

    The status is 1 after an expected error and 130 after Ctrl-C or SIGTERM, which stops a Ray job.
    Unexpected errors keep their traceback.

    Args:
        interrupted: Message after Ctrl-C or SIGTERM.
    """
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except EXPECTED_ERRORS as error:
        logger.debug("traceback", exc_info=error)
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write(f"{interrupted}\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def _check_section(kind: type, settings: Any, where: str) -> None:
    if not isinstance(settings, dict):
        raise ValueError(f"{where} must contain settings, as in name: value; got {settings!r:.100}")
    for entry in fields(kind):
        if is_dataclass(entry.type) and entry.name in settings:
            assert isinstance(entry.type, type)
            _check_section(entry.type, settings[entry.name], f"{where}: {entry.name}")


def _leaves(kind: type, prefix: str = "") -> Iterator[tuple[str, "Field[Any]"]]:
    """Yield dotted name and field of every setting that is not a section."""
    for entry in fields(kind):
        if is_dataclass(entry.type):
            assert isinstance(entry.type, type)
            yield from _leaves(entry.type, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", entry


def _unset_value(entry: "Field[Any]") -> Any:
    """Return the value of an unset setting, MISSING if it must be set."""
    if entry.default is None or entry.default in ("", ()):
        return entry.default
    return None if NoneType in get_args(entry.type) else MISSING


def unsettable_settings(kind: type) -> list[str]:
    """Return the settings that null unsets, by dotted name."""
    return [name for name, entry in _leaves(kind) if _unset_value(entry) is not MISSING]


def _unset_or_reject_nulls(kind: type, options: Namespace) -> None:
    """Replace null by the value of an unset setting; jsonargparse accepts null for every type."""
    for name, entry in _leaves(kind):
        value, unset = options[name], _unset_value(entry)
        is_null = value is None or (value == "null" and path_kind(entry) is not None)
        if is_null and unset is MISSING:
            raise ValueError(f"{name} must have a value, got null or nothing: set it or remove it")
        if is_null:
            options[name] = unset


def _resolve_beside_file(
    settings: _Settings, content: dict[str, Any], others: Sequence[str], file: Path
) -> _Settings:
    """Resolve paths that a config file gives relative to itself."""
    assert is_dataclass(settings)
    given = {
        entry.name: absolute_path(getattr(settings, entry.name), file.parent)
        for entry in fields(settings)
        if path_kind(entry) == "config"
        and entry.name in content
        and not any(each.partition("=")[0] == f"--{entry.name}" for each in others)
    }
    return replace(settings, **given)  # type: ignore[return-value]
