"""Every setting of a run, and the one way in: a YAML file and the command line."""

import difflib
import json
import logging
import math
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, auto_cli, set_parsing_settings

from cluster.config import ClusterConfig, RegistryConfig, check_name
from cluster.errors import RunError, TrackingError
from pipelines.data.config import DataConfig
from ranet.config import ModelConfig, TrainConfig

logger = logging.getLogger(__name__)

PACKAGES = ("ranet", "cluster", "tuning", "pipelines")

_Settings = TypeVar("_Settings")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation of a trained network."""

    budget_fractions: tuple[float, ...] = (0.25, 0.33, 0.5, 0.75, 1.0)
    """Budgets to report and to compare versions by, as fractions of the last exit's mult-adds."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget_fractions", tuple(self.budget_fractions))
        if not self.budget_fractions or any(
            not 0 < budget <= 1 or not math.isclose(budget, round(budget, 2), abs_tol=1e-9)
            for budget in self.budget_fractions
        ):
            raise ValueError(
                "evaluation.budget_fractions must be above 0 and up to 1 in steps of 0.01, "
                f"got {self.budget_fractions}"
            )
        if self.budget_fractions != tuple(sorted(set(self.budget_fractions))):
            raise ValueError(f"evaluation.budget_fractions must rise, got {self.budget_fractions}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training, from images to a registered model."""

    name: str = "cifar10"
    """Name of the run; a second start goes on with an unfinished run, or repeats a finished one."""
    fresh: bool = False
    """Give up an unfinished run of this name and start anew."""
    dry_run: bool = False
    """Only say what the run would take and lack, with status 0 if it would start."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Shape of the network."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images and how they are read."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How the network is trained."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Workers and storage."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Budgets that the network is evaluated at."""
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    """Where the model is registered."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.train.batch_size < self.cluster.max_workers:
            raise ValueError(
                f"train.batch_size must be at least cluster.num_workers "
                f"({self.cluster.max_workers}), got {self.train.batch_size}: "
                "it counts the images of all workers"
            )
        for size in self.train.progressive_sizes:
            try:
                replace(self.model, image_size=size)
            except ValueError as error:
                raise ValueError(
                    f"train.progressive_sizes has {size}, which this network cannot take: {error}"
                ) from error
        if self.train.progressive_sizes and self.data.augment.crop == "pad4":
            raise ValueError(
                "train.progressive_sizes needs data.augment.crop random_resized or none, got pad4, which cuts "
                "windows of model.image_size"
            )
        weights = self.train.loss.exit_weights
        if weights and len(weights) != self.model.num_exits:
            raise ValueError(
                f"train.loss.exit_weights must have one entry per exit, {self.model.num_exits}, "
                f"got {len(weights)}: {weights}"
            )


def read_run(argv: Sequence[str] | None = None) -> Run:
    """Read a run from `--config FILE` and `--section.field=value`, or leave with status 2.

    Args:
        argv: the command line without the name of the script; by default that of this process.
    """
    return read_settings(Run, argv)


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


def flatten(settings: Any, prefix: str = "") -> dict[str, str]:
    """Return every setting by its dotted name; strings as they are, others as JSON."""
    flat: dict[str, str] = {}
    for entry in fields(settings):
        value = getattr(settings, entry.name)
        key = f"{prefix}{entry.name}"
        if is_dataclass(value):
            flat |= flatten(value, f"{key}.")
        else:
            flat[key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def identity(run: Run) -> dict[str, str]:
    """Return the settings that a resumed run must share; the number of workers is none of them."""
    free = {"fresh", "dry_run", *(f"cluster.{entry.name}" for entry in fields(run.cluster))}
    return {
        key: value
        for key, value in flatten(run).items()
        if key == "cluster.storage_path" or key not in free
    }


def config_text(run: Run) -> str:
    """Return the run as YAML that `--config` reads."""
    settings = asdict(run)
    for order in ("fresh", "dry_run"):  # for one start, no property of the run
        del settings[order]
    # By way of JSON, tuples become lists, which YAML knows.
    return yaml.safe_dump(json.loads(json.dumps(settings)), sort_keys=False)


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
