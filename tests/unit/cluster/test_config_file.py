"""Config files: duplicates, order of options, null, wrong types."""

import json
from functools import cache
from typing import Any

import pytest
import yaml

from cluster.cli import CommandLine, parse_settings, setting_names, unsettable_settings
from pipelines import train, tune
from pipelines.run import Run, flatten
from tuning.config import Sweep

SPACE = '--space={"train.seed": {"choice": [1, 2]}}'
SETTINGS = [
    (kind, name)
    for kind in (Run, Sweep)
    for name in setting_names(kind)
    if not any(other.startswith(f"{name}.") for other in setting_names(kind))
]
WRONG = {
    "empty": "", "null": None, "mapping": {"a": 1}, "nested list": [["x"]], "word": "zz",
    "number": 7.5, "infinite": float("inf"), "negative": -7, "boolean": True,
}  # fmt: skip


def as_yaml(name: str, value: Any) -> str:
    for section in reversed(name.split(".")):
        value = {section: value}
    return yaml.safe_dump(value)


@cache
def parser_of(kind: type) -> CommandLine:
    """Build a parser once for all cases: building takes longer than parsing."""
    return CommandLine(settings=kind)


def error_of(kind: type, arguments: list[str]) -> str:
    """Parse arguments; any exception but ValueError fails the test."""
    try:
        parser_of(kind).parse(arguments)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "name"), SETTINGS, ids=lambda value: str(value))
def test_value_of_a_wrong_type_is_accepted_or_rejected_by_name(kind, name, tmp_path):
    """Give each setting each wrong value, by file and by option."""
    file = tmp_path / "settings.yaml"
    space = [SPACE] if kind is Sweep and name != "space" else []
    for label, value in WRONG.items():
        file.write_text(as_yaml(name, value))
        text = value if isinstance(value, str) else json.dumps(value)
        for arguments in ([f"--config={file}"], [f"--{name}={text}"]):
            error = error_of(kind, [*space, *arguments])
            assert not error or name.split(".")[-1] in error, (label, arguments, error)
            assert "\n" not in error
            # On the command line, null may be a name.
            if label == "null" and name not in unsettable_settings(kind) and "name" not in name:
                assert error, (label, arguments)
            if label == "mapping" and "." in name and "=" in arguments[0][:9]:
                assert error, (label, arguments)


@pytest.mark.parametrize("name", unsettable_settings(Run))
def test_setting_that_may_be_unset_is_unset_by_null(name, tmp_path, capsys):
    file = tmp_path / "settings.yaml"
    file.write_text(as_yaml(name, None))
    by_option = parse_settings(Run, [f"--{name}=null"])
    assert by_option == parse_settings(Run, [f"--config={file}"])
    unset = json.loads(f'"{flatten(by_option)[name]}"') or "null"
    assert unset in ("null", "[]")
    with pytest.raises(SystemExit):
        train.command_line().read(["--help"])
    assert name in capsys.readouterr().out.partition("=null unsets")[2]


def test_null_on_the_command_line_overrides_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: {source: imagefolder, source_dir: tree, class_index: names.txt}\n")
    run = parse_settings(Run, [f"--config={file}", "--data.class_index=null"])
    assert run.data.class_index == ""


@pytest.mark.parametrize("name", ["train.optim.lr", "data.augment.flip", "cluster.num_workers"])
def test_empty_setting_is_rejected_by_name(name, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(as_yaml(name, None))
    with pytest.raises(ValueError, match=f"^{name} must have a value, got null or nothing"):
        parse_settings(Run, [f"--config={file}"])


@pytest.mark.parametrize(
    ("text", "name", "lines"),
    [
        ("train: {epochs: 3}\nname: x\ntrain: {seed: 1}", "train", (1, 3)),
        ("train:\n  epochs: 3\n  seed: 1\n  epochs: 4", "train.epochs", (2, 4)),
        ("train:\n  optim:\n    lr: 1\n    lr: 1", "train.optim.lr", (3, 4)),
        ("name: a\n'name': b", "name", (1, 2)),
        ("name: a\nmodel: {scales: [1],\n  scales: [1]}", "model.scales", (2, 3)),
    ],
)
def test_setting_twice_in_a_file_is_rejected_by_name_and_line(text, name, lines, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    first, second = lines
    message = f"contains {name} twice, in lines {first} and {second}: keep one of them"
    with pytest.raises(ValueError, match=message):
        parse_settings(Run, [f"--config={file}"])


@pytest.mark.parametrize("form", [["--config={}"], ["--config", "{}"]])
@pytest.mark.parametrize("first", [True, False])
def test_option_overrides_the_file_in_any_order(form, first, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("train: {epochs: 7, seed: 5}")
    config = [each.format(file) for each in form]
    option = ["--train.epochs=3"]
    run = parse_settings(Run, [*option, *config] if first else [*config, *option])
    assert (run.train.epochs, run.train.seed) == (3, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=a.yaml", "--config=b.yaml"], r"--config is given more than once \(a.yaml, b"),
        (["--config", "a.yaml", "--config=a.yaml"], "--config is given more than once"),
        (["--config"], "--config needs a YAML file"),
        (["--config="], "--config needs a YAML file"),
        (["--config", "--name=x"], "--config needs a YAML file"),
        (["--config=none.yaml"], "--config is .*none.yaml: no such file"),
        (["--config=name: x"], "--config is .*name: x: no such file"),
        (["--config=."], "--config is .*: Is a directory"),
        (["--config=latin.yaml"], "--config is .*latin.yaml: not UTF-8"),
        (["--config=date.yaml"], "date.yaml is not YAML: "),
        (["--config=loop.yaml"], "loop.yaml is not YAML: "),
    ],
)
def test_config_option_that_cannot_be_used_is_rejected(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("name: x")
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    (tmp_path / "date.yaml").write_text("name: 2026-99-99")
    (tmp_path / "loop.yaml").write_text("name: &a [*a")
    with pytest.raises(ValueError, match=message):
        parse_settings(Run, arguments)


def test_config_file_in_the_home_folder_or_with_a_byte_order_mark_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("name: at-home", encoding="utf-8-sig")
    assert parse_settings(Run, ["--config=~/run.yaml"]).name == "at-home"


@pytest.mark.parametrize(
    ("script", "text", "right"),
    [
        (train, "name: x\nspace: {train.seed: {choice: [1]}}", "tune.py"),
        (train, "base_config: run.yaml", "tune.py"),
        (tune, "name: x\nmodel: {scales: [1]}", "train.py"),
        (tune, "train: {epochs: 3}", "train.py"),
    ],
)
def test_config_of_another_script_is_rejected_with_that_script(
    script, text, right, tmp_path, capsys
):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as ending:
        script.command_line().read([f"--config={file}"])
    assert ending.value.code == 2
    assert f"it is a config of pipelines/{right}" in capsys.readouterr().err
