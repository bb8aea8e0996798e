"""Path settings: absolute after parsing, relative in a run's identity."""

import os
from pathlib import Path

import pytest

from cluster.cli import parse_settings
from pipelines import evaluate, prepare_data, train
from pipelines.run import Run, config_text, identity
from tuning.config import Sweep

SPACE = '--space={"train.seed": {"choice": [1, 2]}}'


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch) -> Path:
    """Working folder `project`, home folder `home`."""
    (tmp_path / "project").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize(
    ("name", "given", "resolved"),
    [
        ("data.source_dir", "tree", "project/tree"),
        ("data.source_dir", "./tree", "project/tree"),
        ("data.source_dir", "../tree", "project/../tree"),
        ("data.source_dir", "~/tree", "home/tree"),
        ("data.source_dir", "a b/é", "project/a b/é"),
        ("data.prepared_dir", "prepared", "project/prepared"),
        ("data.prepared_dir", "~/prepared", "home/prepared"),
        ("data.class_index", "names.txt", "project/names.txt"),
        ("data.class_index", "~/names.txt", "home/names.txt"),
        ("cluster.storage_path", "runs", "project/runs"),
        ("cluster.storage_path", "~/runs", "home/runs"),
        ("cluster.cache_dir", "cache", "project/cache"),
    ],
)
def test_path_is_absolute_after_parsing(name, given, resolved, in_file, folders):
    source = [] if name == "data.source_dir" else ["--data.source_dir=images"]
    arguments = ["--data.source=imagefolder", *source]
    if in_file:
        section, _, field = name.partition(".")
        (folders / "elsewhere").mkdir()
        file = folders / "elsewhere" / "run.yaml"
        file.write_text(f"{section}: {{{field}: '{given}'}}", encoding="utf-8")
        arguments.append(f"--config={file}")
    else:
        arguments.append(f"--{name}={given}")
    for script in (train, evaluate, prepare_data):
        model = ["models:/m/1"] if script is evaluate else []
        run = script.command_line().read([*model, *arguments]).settings
        section, _, field = name.partition(".")
        assert getattr(getattr(run, section), field) == str(folders / resolved)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cluster.storage_path", "s3://team/runs"),
        ("data.prepared_dir", "s3://team/images"),
        ("data.prepared_dir", ""),
        ("cluster.cache_dir", "~/.cache/ranet"),  # the home folder of each node
    ],
)
def test_uri_unset_path_and_home_of_a_node_are_unchanged(name, value):
    run = parse_settings(Run, [f"--{name}={value}"])
    section, _, field = name.partition(".")
    assert getattr(getattr(run, section), field) == value


def test_home_of_an_unknown_user_is_rejected():
    with pytest.raises(ValueError, match=r"~nobody-here/runs: .*write the path in full"):
        parse_settings(Run, ["--cluster.storage_path=~nobody-here/runs"])


def test_identity_is_the_same_in_every_folder_that_a_job_runs_in(folders, monkeypatch):
    arguments = [
        "--data.source=imagefolder", "--data.source_dir=tree", "--data.class_index=names.txt",
        f"--data.prepared_dir={folders}/prepared",
    ]  # fmt: skip
    first = parse_settings(Run, arguments)
    found = identity(first)
    (folders / "project" / "run.yaml").write_text(config_text(first))
    again = parse_settings(Run, ["--config=run.yaml"])
    assert again == first
    (folders / "job").mkdir()
    monkeypatch.chdir(folders / "job")
    assert identity(parse_settings(Run, arguments)) == found
    assert found["data.source_dir"] == "tree"
    assert found["cluster.storage_path"] == "outputs/runs"
    assert found["data.prepared_dir"] == f"{folders}/prepared"


@pytest.mark.parametrize(
    ("in_file", "option", "resolved"),
    [
        ("run.yaml", None, "sweeps/run.yaml"),
        ("../run.yaml", None, "sweeps/../run.yaml"),
        ("~/run.yaml", None, "home/run.yaml"),
        ("run.yaml", "run.yaml", "project/run.yaml"),
        (None, "run.yaml", "project/run.yaml"),
    ],
)
def test_base_config_of_a_sweep_is_relative_to_the_file_that_names_it(
    in_file, option, resolved, folders
):
    (folders / "sweeps").mkdir()
    text = "num_trials: 2\n" + (f"base_config: {in_file}\n" if in_file else "")
    (folders / "sweeps" / "sweep.yaml").write_text(text)
    file = os.path.relpath(folders / "sweeps" / "sweep.yaml")
    options = [f"--base_config={option}"] if option else []
    sweep = parse_settings(Sweep, [f"--config={file}", *options, SPACE])
    assert os.path.normpath(sweep.base_config) == os.path.normpath(folders / resolved)
