"""Rejection of commands that cannot run as a job."""

import subprocess
import sys

import pytest

from cluster.execution.jobs import JobError
from pipelines.submit_checks import check_address, check_command, sent_files
from tests.support.paths import PROJECT


@pytest.fixture
def folder(tmp_path):
    """A small project with ignored and sent files."""
    for name, text in {
        "pipelines/train.py": "",
        "pipelines/data/__main__.py": "",
        "configs/run.yaml": "name: run",
        "configs/sweeps/sweep.yaml": "base_config: ../run.yaml",
        "configs/sweeps/best.yaml": "base_config: ../../outputs/best.yaml",
        "configs/classes.yaml": "data: {class_index: outputs/names.txt}",
        "outputs/best.yaml": "name: best",
        "outputs/names.txt": "cat",
        "local.yaml": "name: local",
        ".venv/bin/python": "",
        ".gitignore": "/outputs/\n.venv/\n",
        ".rayignore": "local.yaml\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "python pipelines/train.py --config configs/run.yaml",
        "python -u pipelines/train.py --config=configs/run.yaml --name=x",
        "python -W ignore ./pipelines/train.py",
        "python3 -m pipelines.train --config configs/run.yaml",
        "python -m pipelines.data",
        "python -m pip list",
        "python -c pass",
        "/usr/bin/python3 pipelines/train.py",
        "python pipelines/train.py --config configs/sweeps/sweep.yaml",
        "python pipelines/train.py --config /shared/run.yaml",
        "env",
        "sleep 5",
    ],
)
def test_command_whose_files_are_sent_is_accepted(command, folder):
    check_command(command.split(), folder)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["python pipelines/train.py --config configs/run.yaml"], "write it without quotes: -- py"),
        (["python", "pipelines/train.py --config x"], "has no pipelines/train.py --config x"),
        ("python pipelines/trian.py", "has no pipelines/trian.py; did you mean pipelines/train.py"),
        ("python pipelines/trian.py --config configs/run.yaml", "did you mean"),
        ("python -m pipelines.trian", "did you mean pipelines/train.py"),
        ("python elsewhere.sh", "change to the folder of the project"),
        ("./start.sh", "has no ./start.sh"),
        ("python ../train.py", "whose code is sent; name the script relative to it"),
        ("python /elsewhere/train.py", "whose code is sent; name the script relative to it"),
        (
            "python {folder}/pipelines/train.py",
            "another path on the cluster; write pipelines/train",
        ),
        (".venv/bin/python pipelines/train.py", "python is not sent: .gitignore or .rayignore"),
        ("python pipelines/train.py --config outputs/best.yaml", "outputs/best.yaml is not sent"),
        ("python pipelines/train.py --config=outputs/best.yaml", "outputs/best.yaml is not sent"),
        ("python pipelines/train.py --config local.yaml", "local.yaml is not sent"),
        ("python pipelines/train.py --data.class_index=outputs/names.txt", "names.txt is not sent"),
        ("python pipelines/train.py --config configs/sweeps/best.yaml", "best.yaml is not sent"),
        ("python pipelines/train.py --config configs/classes.yaml", "names.txt is not sent"),
        (
            "python pipelines/train.py --config configs/rnu.yaml",
            "configs/rnu.yaml: .* no such file",
        ),
        ("python pipelines/train.py --config=none.yaml", "--config is none.yaml: .* no such file"),
    ],
)
def test_command_that_cannot_run_is_rejected_by_name(command, message, folder):
    words = command.format(folder=folder).split() if isinstance(command, str) else command
    with pytest.raises(JobError, match=message):
        check_command(words, folder)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "python pipelines/train.py --config configs/digits.yaml --train.epochs=0",
            "pipelines/train.py: train.epochs must be 1 or more, got 0",
        ),
        (
            "python -m pipelines.train --train.epoch=3 --config=configs/digits.yaml",
            "pipelines/train.py: train.epoch is not a setting; did you mean train.epochs?",
        ),
        (
            "python pipelines/tune.py --config configs/digits.yaml",
            "it is a config of pipelines/train.py",
        ),
        ("python pipelines/predict.py --budget_fraction=2", "pipelines/predict.py: "),
        ("python pipelines/train.py --config configs/digits.yaml --train.epochs=2", None),
        ("python pipelines/tune.py --config configs/sweeps/digits.yaml --num_trials 2", None),
        ("python pipelines/train.py --config /only/on/the/cluster.yaml --train.epochs=0", None),
        ("python pipelines/train.py --help", None),
    ],
)
def test_settings_of_a_script_are_checked_before_it_is_sent(command, message):
    if message is None:
        check_command(command.split(), PROJECT)
        return
    with pytest.raises(JobError) as caught:
        check_command(command.split(), PROJECT)
    assert message in str(caught.value)


def test_sent_files_are_those_that_no_ignore_file_excludes(folder):
    sent = sent_files(folder)
    assert {"pipelines/train.py", "configs/run.yaml"} <= sent
    assert not {"outputs/best.yaml", "local.yaml", ".venv/bin/python"} & sent


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8265", "head", "ray://10.0.0.1:10001", "localhost:8265"]
)
def test_address_without_http_is_rejected(address):
    with pytest.raises(JobError, match=r"RAY_API_SERVER_ADDRESS is .*http://[\w.]+:8265"):
        check_address(address)
    check_address("https://head.example/ray")


def test_script_rejects_a_command_with_status_2_before_it_connects(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, PROJECT / "pipelines" / "submit.py", "--", "python", "pipelines/train.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"{tmp_path} has no pipelines/train.py; change to the folder" in done.stderr
