"""Checks of a command before its job is sent: script, config files and what travels."""

import difflib
import shlex
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from ray._private.runtime_env.packaging import create_package

from cluster.execution.jobs import JobError

_OPTIONS_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
_CONFIG_FILES = ("base_config", "class_index")
"""Settings of config files that name a file which travels with the code."""


def check_address(address: str) -> None:
    """Check that the address of a cluster's dashboard is a URL.

    Raises:
        JobError: the address has no scheme, or another one.
    """
    if not address.startswith(("http://", "https://")):
        host = address.partition("://")[2] or address
        raise JobError(
            f"RAY_API_SERVER_ADDRESS is {address}: it must be a URL of the dashboard, as in "
            f"http://{host.partition(':')[0]}:8265"
        )


def check_command(command: Sequence[str], folder: Path) -> None:
    """Check that the files that a command names travel with the code of a folder.

    Args:
        command: words of the job's command.
        folder: folder whose code is sent.

    Raises:
        JobError: the command is one quoted word, or a file is missing or not sent.
    """
    if len(command) == 1 and len(shlex.split(command[0])) > 1:
        raise JobError(
            f"the command is one word, {command[0]!r}; write it without quotes: -- {command[0]}"
        )
    sent = sent_files(folder)
    script = _script(command)
    if script is not None:
        _check_script(script, folder, sent)
    for file in _named_files(command, folder):
        relative = _relative(file, folder)
        if relative is not None and relative not in sent and (folder / relative).is_file():
            raise JobError(
                f"{file} is not sent: .gitignore or .rayignore excludes it; copy it to a folder "
                "that is sent, such as configs/, and name the copy"
            )


def sent_files(folder: Path) -> frozenset[str]:
    """Return the relative paths of the files that Ray sends of a folder."""
    with tempfile.TemporaryDirectory(prefix="ranet-code-") as scratch:
        package = Path(scratch) / "code.zip"
        create_package(str(folder), package, include_gitignore=True)
        with zipfile.ZipFile(package) as content:
            return frozenset(content.namelist())


def _script(command: Sequence[str]) -> str | None:
    """Return the script of a command, as a path relative to the folder; None if there is none."""
    program = Path(command[0]).name
    if not program.startswith("python"):
        is_path = "/" in command[0] or program.endswith((".py", ".sh"))
        return command[0] if is_path and not Path(command[0]).is_absolute() else None
    if "/" in command[0] and not Path(command[0]).is_absolute():
        return command[0]  # an interpreter of this folder
    words = iter(command[1:])
    for word in words:
        if word == "-m":
            module = next(words, "")
            first = module.partition(".")[0]
            return f"{module.replace('.', '/')}.py" if first in ("pipelines", "cluster") else None
        if word.startswith("-c"):
            return None
        if not word.startswith("-"):
            return word
        if word in _OPTIONS_WITH_VALUE:
            next(words, None)
    return None


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


def _named_files(command: Sequence[str], folder: Path) -> Iterator[str]:
    """Yield the words that may name files, and the files that config files name.

    Raises:
        JobError: a config file is missing.
    """
    for word, following in zip(command, [*command[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option == "--config":
            config = value if equals else following
            path = folder / config
            if not Path(config).is_absolute() and not config.startswith("~"):
                if not path.is_file():
                    raise JobError(f"--config is {config}: {folder} has no such file")
                yield from _files_in(path, folder)
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
    """Return a file's path relative to a folder; None for a file elsewhere."""
    path = (folder / file).resolve()
    return (
        path.relative_to(folder.resolve()).as_posix()
        if path.is_relative_to(folder.resolve())
        else None
    )
