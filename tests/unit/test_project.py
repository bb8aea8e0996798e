"""Consistency of project files: dependencies, configs, setup scripts and safe loading."""

import ast
import os
import pickle
import re
import shutil
import socket
import subprocess
import tomllib
from functools import partial
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.train import Checkpoint

from cluster.cli import parse_settings, read_settings
from cluster.storage.checkpoints import SNAPSHOT, load_checkpoint, write_checkpoint
from pipelines.run import Run
from pipelines.sweep_candidates import check_candidate
from tuning.config import Sweep
from tuning.sampler import Sampler
from tuning.space import as_arguments

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned_versions() -> dict[str, str]:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line)
        assert match, f"constraints.txt has more than a name and a version: {line!r}"
        pins[canonicalize_name(match[1])] = match[2]
    return pins


def test_dependency_pins_satisfy_their_requirements():
    pins = pinned_versions()
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["train"], *extras["export"], *extras["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_trained_networks_are_in_the_wheel_and_not_in_jobs():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert "pretrained/*/*" in tools["setuptools"]["package-data"]["ranet"]
    assert "/ranet/pretrained/" in (ROOT / ".rayignore").read_text().splitlines()


def test_base_installation_requires_only_torch():
    assert PROJECT["dependencies"] == ["torch"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem
)
def test_sweep_config_samples_trainable_runs(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    sweep = read_settings(Sweep, ["--config", str(path)])
    base = parse_settings(Run, ["--config", sweep.base_config, *as_arguments(sweep.overrides)])
    sampler = Sampler(
        sweep.space, method=sweep.sampler, objective=sweep.objective, seed=1,
        num_trials=sweep.num_trials, check=partial(check_candidate, sweep, base),
    )  # fmt: skip
    for _ in range(4):
        candidate, _ = sampler.next()
        assert candidate.params.keys() == sweep.space.keys()


def test_port_in_use_is_named_with_the_option_to_change_it():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            ["make", "--assume-old=setup", "ui", f"PORT={port}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
    assert done.returncode != 0
    assert f"error: port {port} is in use; choose another: make ui PORT=" in done.stderr


def test_page_of_a_folder_without_runs_is_rejected(tmp_path):
    done = subprocess.run(
        ["make", "--assume-old=setup", f"--file={ROOT}/Makefile", "ui", "PORT=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert f"error: {tmp_path} has no mlflow.db, as no run was logged here; train" in done.stderr
    assert not list(tmp_path.iterdir())


def test_unusable_python_is_rejected_by_name():
    done = subprocess.run(
        [ROOT / "cluster" / "provisioning" / "setup.sh"],
        env={**os.environ, "PYTHON": "/no/such/python"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "PYTHON is /no/such/python" in done.stderr


def test_system_packages_that_cannot_be_installed_are_named(tmp_path: Path):
    for tool in ("bash", "dpkg-query"):  # neither apt-get nor sudo
        real = shutil.which(tool)
        if real is None:
            pytest.skip(f"no {tool}: not a Debian or Ubuntu machine")
        (tmp_path / tool).symlink_to(real)
    done = subprocess.run(
        ["bash", ROOT / "cluster" / "provisioning" / "packages.sh", "no-such-package"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no-such-package" in done.stderr


def test_files_are_loaded_without_unpickling_except_where_docs_security_says():
    safely = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
    unpickling = set()
    for package in ("ranet", "cluster", "pipelines", "tuning"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                if name in safely:
                    given = {each.arg: ast.unparse(each.value) for each in node.keywords}
                    argument, value = safely[name]
                    assert given.get(argument) == str(value), f"{path}:{node.lineno}"
                elif re.search(r"pickle\.(load|loads|Unpickler)$|yaml\.(?!safe_)\w*load", name):
                    unpickling.add((str(path.relative_to(ROOT)), name))
    assert unpickling == {("cluster/execution/ray_internals.py", "cloudpickle.loads")}


class _Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_checkpoint_with_code_is_rejected_and_the_code_not_executed(tmp_path: Path):
    write_checkpoint(tmp_path, {SNAPSHOT: {"model": _Malicious(tmp_path / "ran")}})
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load_checkpoint(Checkpoint.from_directory(str(tmp_path)))
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(_Malicious(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "the code runs when it is unpickled"
