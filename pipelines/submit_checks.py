"""Checks of a command before its job is sent."""

import difflib
import itertools
import shlex
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from ray._private.runtime_env.packaging import create_package

from cluster.execution.jobs import JobError

_OPTIONS_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
_USAGE_ERROR = 2
"""Exit status of a script whose arguments are wrong."""
_CONFIG_FILES = ("base_config", "class_index")
"""Settings of config files that name a file which travels with the code."""


def check_address(address: str) -> None:
    """Check that RAY_API_SERVER_ADDRESS is a URL.

    Raises:
        JobError: the URL has no scheme, or another one.
    """
    if not address.startswith(("http://", "https://")):
        host = address.partition("://")[2] or address
        raise JobError(
            f"RAY_API_SERVER_ADDRESS is {address}: it must be a URL of the dashboard, as in "
            f"http://{host.partition(':')[0]}:8265"
        )


def check_command(command: Sequence[str], folder: Path) -> None:
    """Check the files and the settings of a job's command.

    Args:
        command: words of the job's command.
        folder: folder whose code is sent.

    Raises:
        JobError: the command is one quoted word, a file is missing or not sent, or a setting or
            option is wrong.
    """
    if len(command) == 1 and len(shlex.split(command[0])) > 1:
        raise JobError(
            f"the command is one word, {command[0]!r}; write it without quotes: -- {command[0]}"
        )
    sent = sent_files(folder)
    script, arguments = _script(command)
    if script is not None:
        _check_script(script, folder, sent)
    for file in _named_files(command, folder):
        relative = _relative(file, folder)
        if relative is not None and relative not in sent and (folder / relative).is_file():
            raise JobError(
                f"{file} is not sent: .gitignore or .rayignore excludes it; copy it to a folder "
                "that is sent, such as configs/, and name the copy"
            )
    if script is not None:
        _check_arguments(script, arguments, folder)


def sent_files(folder: Path) -> frozenset[str]:
    """Return the files of a folder that Ray sends."""
    with tempfile.TemporaryDirectory(prefix="ranet-code-") as scratch:
        package = Path(scratch) / "code.zip"
        create_package(str(folder), package, include_gitignore=True)
        with zipfile.ZipFile(package) as content:
            return frozenset(content.namelist())


def _script(command: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the script of a command, if any, and its arguments."""
    program, arguments = Path(command[0]).name, list(command[1:])
    if not program.startswith("python"):
        is_path = "/" in command[0] or program.endswith((".py", ".sh"))
        is_here = is_path and not Path(command[0]).is_absolute()
        return command[0] if is_here else None, arguments
    if "/" in command[0] and not Path(command[0]).is_absolute():
        return command[0], arguments  # an interpreter of this folder
    while arguments:
        word = arguments.pop(0)
        if word == "-m":
            module = arguments.pop(0) if arguments else ""
            is_ours = module.partition(".")[0] in ("pipelines", "cluster")
            return f"{module.replace('.', '/')}.py" if is_ours else None, arguments
        if word.startswith("-c"):
            return None, arguments
        if not word.startswith("-"):
            return word, arguments
        if word in _OPTIONS_WITH_VALUE:
            del arguments[:1]
    return None, arguments


def _check_script(script: str, folder: Path, sent: frozenset[str]) -> None:
    relative = _relative(script, folder)
    if relative is None:
        raise JobError(
            f"{script} is not in {folder}, whose code is sent; name the script relative to it"
        )
    package = f"{relative.removesuffix('.py')}/__main__.py"
    if relative in sent or package in sent:
        if Path(script).is_absolute():
            raise JobError(f"{script} is another path on the cluster; write {relative}")
        return
    if (folder / relative).exists():
        raise JobError(
            f"{script} is not sent: .gitignore or .rayignore excludes it; use a file that is "
            "sent (for an interpreter: python)"
        )
    similar = difflib.get_close_matches(relative, sorted(sent), n=1)
    hint = f"did you mean {similar[0]}?" if similar else "change to the folder of the project"
    raise JobError(f"{folder} has no {script}; {hint}")


def _check_arguments(script: str, arguments: Sequence[str], folder: Path) -> None:
    """Parse the arguments of a script that declares its command line.

    A config file outside the folder may exist on the cluster alone; without it, the settings are
    not known here.
    """
    module = str(_relative(script, folder)).removesuffix(".py").replace("/", ".")
    if module.partition(".")[0] != "pipelines" or _names_foreign_config(arguments):
        return
    parse = (
        f"import {module} as script\n"
        "if hasattr(script, 'command_line'): script.command_line().read()"
    )
    done = subprocess.run(
        [sys.executable, "-c", parse, *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == _USAGE_ERROR:
        message = done.stderr.strip().splitlines()[-1].removeprefix("error: ")
        raise JobError(f"{script}: {message}")


def _names_foreign_config(arguments: Sequence[str]) -> bool:
    for config in _configs(arguments):
        path = Path(config).expanduser()
        if path.is_absolute() and not path.is_file():
            return True
    return False


def _configs(words: Sequence[str]) -> Iterator[str]:
    """Yield the values of --config."""
    for word, following in itertools.pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if option == "--config":
            yield value if equals else following


def _named_files(command: Sequence[str], folder: Path) -> Iterator[str]:
    """Yield the files that a command and its config files may name.

    Raises:
        JobError: a config file is missing.
    """
    for config in _configs(command):
        path = folder / Path(config).expanduser()
        if path.is_relative_to(folder):
            if not path.is_file():
                raise JobError(f"--config is {config}: {folder} has no such file")
            yield from _files_in(path, folder)
    for word in command:
        _, equals, value = word.partition("=")
        yield value if equals else word


def _files_in(config: Path, folder: Path) -> Iterator[str]:
    try:
        content = yaml.safe_load(config.read_bytes())
    except (OSError, yaml.YAMLError):
        return  # the job names the problem
    for section in (content, content.get("data")) if isinstance(content, dict) else ():
        for name in _CONFIG_FILES:
            value = section.get(name) if isinstance(section, dict) else None
            if isinstance(value, str) and value:
                beside = config.parent if name == "base_config" else folder
                yield str(beside / Path(value).expanduser())


def _relative(file: str, folder: Path) -> str | None:
    """Return a path relative to a folder, None for other paths."""
    path = (folder / file).resolve()
    return (
        path.relative_to(folder.resolve()).as_posix()
        if path.is_relative_to(folder.resolve())
        else None
    )
