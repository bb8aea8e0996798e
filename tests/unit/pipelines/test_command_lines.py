"""Command lines of all scripts: their options, and their help.

`python -m tests.unit.pipelines.test_command_lines` rewrites the list of options.
"""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import CommandLine, setting_names
from pipelines.run import Run
from tests.support.paths import PROJECT
from tuning.config import Sweep

LIST = Path(__file__).with_name("command_lines.txt")
MODULES = (
    "pipelines.train", "pipelines.tune", "pipelines.evaluate", "pipelines.predict",
    "pipelines.save_model", "pipelines.export", "pipelines.prepare_data", "pipelines.submit",
    "cluster.local.__main__", "cluster.mlflow_server", "cluster.provisioning.aws_resources",
    "cluster.tracking.relocate",
)  # fmt: skip


def command(module: str) -> list[str]:
    if module.startswith("pipelines."):
        return [sys.executable, f"{module.replace('.', '/')}.py"]
    return [sys.executable, "-m", module.removesuffix(".__main__")]


def own_options(parser: CommandLine, prefix: str) -> list[str]:
    """Return the options of an invocation, of a parser and its subcommands."""
    settings = setting_names(parser.settings_type) if parser.settings_type else []
    lines = []
    for action in parser._actions:
        if isinstance(action.choices, dict):  # subcommands
            for name, child in action.choices.items():
                lines += own_options(child, f"{prefix} {name}")
        elif action.dest not in settings:
            written = [text for text in action.option_strings if text.startswith("--")]
            lines.append(f"{prefix} {(written or [action.metavar or action.dest])[0]}")
    return lines


def all_actions(parser: CommandLine) -> list[argparse.Action]:
    """Arguments of a parser and of its subcommands."""
    actions = []
    for action in parser._actions:
        if isinstance(action.choices, dict):  # subcommands
            for child in action.choices.values():
                actions += all_actions(child)
        else:
            actions.append(action)
    return actions


def options_of_all_scripts() -> list[str]:
    lines = []
    for module in MODULES:
        parser = importlib.import_module(module).command_line()
        prefix = " ".join(command(module)[1:])
        lines += own_options(parser, prefix)
        if parser.settings_type is not None:
            lines.append(f"{prefix} settings of {parser.settings_type.__name__}")
    for kind in (Run, Sweep):
        lines += [f"{kind.__name__} --{name}" for name in setting_names(kind)]
    return lines


def test_options_of_all_scripts_are_the_listed_ones():
    assert options_of_all_scripts() == LIST.read_text().splitlines()


@pytest.mark.parametrize("module", MODULES)
def test_help_of_a_script_is_complete_and_has_status_0(module: str):
    done = subprocess.run(
        [*command(module), "--help"], cwd=PROJECT, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parser = importlib.import_module(module).command_line()
    description = (sys.modules[module].__doc__ or "").splitlines()[0]
    assert description in done.stdout
    for action in parser._actions:
        assert all(text in done.stdout for text in action.option_strings)
    for action in all_actions(parser):
        assert action.help, f"{action.dest} has no help"


if __name__ == "__main__":
    LIST.write_text("\n".join(options_of_all_scripts()) + "\n")
