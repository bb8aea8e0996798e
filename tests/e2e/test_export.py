"""Export in a new environment without PyTorch."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.model_packaging.contents import make_saved_model
from ranet import BudgetedClassifier, SavedModel, write_model
from tests.support.paths import PROJECT
from tests.support.registered import INFO, RUN, trained_network

pytestmark = pytest.mark.e2e

PACKAGES = ("onnxruntime", "numpy", "pillow")
MAX_ENVIRONMENT_BYTES = 200e6
MAX_SECONDS = 3.0
"""From the start of the process to the answer."""


@pytest.fixture(scope="module")
def saved() -> SavedModel:
    network = trained_network()
    return make_saved_model(RUN, network.model.state_dict(), network.evaluation, INFO, {})


@pytest.fixture(scope="module")
def export(saved: SavedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_model(folder / "network", saved)
    script = PROJECT / "pipelines" / "export.py"
    done = subprocess.run(
        [sys.executable, script, folder / "network", "--output", folder / "onnx"],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"try: python {folder}/onnx/cascade.py IMAGE..." in done.stdout
    return folder / "onnx"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of a new environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "-c", PROJECT / "constraints.txt"]
    subprocess.run([*pip, *PACKAGES], check=True)
    return python


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    files = []
    for number, image in enumerate(trained_network().test_images[:5]):
        files.append(folder / f"{number}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    return files


def test_a_new_environment_answers_as_pytorch_does(
    export: Path, python: Path, images: list[Path], saved: SavedModel
):
    command = [python, export / "cascade.py", *images, "--budget-fraction", "0.6"]
    seconds = []
    lines: list[str] = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
        lines = done.stdout.splitlines()[1:]
    pixels = np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in images])
    expected = BudgetedClassifier(saved).classify(torch.from_numpy(pixels), 0.6)
    for line, label, exit_, file in zip(
        lines, expected.labels.tolist(), expected.exits.tolist(), images, strict=True
    ):
        words = line.split()
        assert words[0] == saved.metadata.class_names[label]
        assert int(words[2]) == exit_
        assert words[-1] == str(file)
    assert min(seconds) < MAX_SECONDS


def test_the_environment_is_small_and_has_no_pytorch(python: Path):
    folder = python.parents[1]
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert sum(file.stat().st_size for file in files) <= MAX_ENVIRONMENT_BYTES
    assert not [file for file in files if file.match("site-packages/torch/__init__.py")]


def test_an_impossible_budget_ends_with_one_sentence(
    export: Path, python: Path, images: list[Path]
):
    command = [python, export / "cascade.py", images[0], "--budget-fraction", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: budget_fraction must be from ")
    assert len(done.stderr.splitlines()) == 1
