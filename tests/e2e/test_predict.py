"""Classification with a registered model by the script and by MLflow's server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from mlflow import MlflowClient
from PIL import Image

from cluster.tracking import registry
from pipelines.model_packaging.package import RegisteredVersion
from tests.support.paths import PROJECT
from tests.support.registered import COSTS, register_tiny, trained_network

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    tools = Path(sys.executable).parent
    return {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
    }


@pytest.fixture(scope="module")
def version(folder: Path, environment: dict[str, str]) -> RegisteredVersion:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", environment["MLFLOW_TRACKING_URI"])
        return register_tiny(MlflowClient(), folder)


def predict(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "pipelines/predict.py", *arguments],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits(folder: Path) -> list[Path]:
    """Test images as files; one is larger, grey and has margins."""
    files = []
    for k, pixels in enumerate(trained_network().test_images[:4].numpy()):
        files.append(folder / f"digit{k}.png")
        Image.fromarray(pixels.transpose(1, 2, 0)).save(files[-1])
    large = Image.open(files[0]).convert("L").resize((224, 224), Image.Resampling.NEAREST)
    margin = Image.new("L", (300, 256))
    margin.paste(large, (38, 16))
    margin.save(folder / "large.png")
    return [*files, folder / "large.png"]


def test_script_classifies_files_like_the_network(
    version: RegisteredVersion, environment: dict[str, str], digits: list[Path]
):
    done = predict(
        environment,
        f"models:/{version.name}@champion",
        *map(str, digits),
        "--budget-fraction",
        "0.5",
    )
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["file", "label", "confidence", "exit", "mult-adds"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", environment["MLFLOW_TRACKING_URI"])
        model = registry.load(f"models:/{version.name}/{version.version}")
    answers = model.predict(
        trained_network().test_images[:4].numpy(), params={"budget_fraction": 0.5}
    )
    for file, line, row in zip(digits, lines, [*range(4), 0], strict=True):
        name, label, confidence, number, *_ = line.split()
        assert name == str(file)
        assert label == answers["class_name"][row]
        assert int(number) == answers["exit"][row]
        assert float(confidence) == pytest.approx(answers["confidence"][row], abs=1e-3)


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("missing.png", [], "missing.png"),
        ("text.png", [], "text.png is not a readable image"),
        ("digit0.png", ["--budget-fraction", "0.2"], "budget_fraction must be from 0.4091"),
    ],
)
def test_unreadable_input_is_reported_in_one_sentence(
    version: RegisteredVersion,
    environment: dict[str, str],
    digits: list[Path],
    folder: Path,
    file: str,
    options: list[str],
    message: str,
):
    (folder / "text.png").write_text("no image")
    done = predict(environment, f"models:/{version.name}@champion", str(folder / file), *options)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_readable_files_are_classified_beside_unreadable_ones(
    version: RegisteredVersion, environment: dict[str, str], digits: list[Path], folder: Path
):
    (folder / "text.png").write_text("no image")
    large = ["--max-pixels", str(16 * 16)]
    files = [str(digits[0]), str(folder / "text.png"), str(digits[-1]), str(digits[1])]
    done = predict(environment, f"models:/{version.name}@champion", *files, *large)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["file", files[0], files[3]]
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: {files[1]} is not a readable image")
    assert second.startswith(f"error: {files[2]} has 300 x 256 pixels, more than max_pixels, 256")


def test_missing_model_is_reported_in_one_sentence(environment: dict[str, str], digits: list[Path]):
    done = predict(environment, "models:/nothing@champion", str(digits[0]))
    assert done.returncode == 1
    assert done.stderr.startswith("error: MLflow at sqlite:///")
    assert "cannot load models:/nothing@champion" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def server(version: RegisteredVersion, environment: dict[str, str], folder: Path) -> Iterator[str]:
    """The champion behind MLflow's scoring server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [
        "mlflow", "models", "serve", "--model-uri", f"models:/{version.name}@champion",
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if requests.get(f"{address}/ping", timeout=5).ok:
                    break
            except requests.ConnectionError:
                pass
            text = (folder / "server.log").read_text()
            assert process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        yield f"{address}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def post(server: str, content: Any) -> requests.Response:
    return requests.post(server, json=content, timeout=60)


def test_server_answers_within_the_budget(server: str):
    images = trained_network().test_images[:3].tolist()
    response = post(server, {"inputs": images, "params": {"budget_fraction": 0.4091}})
    assert response.status_code == 200, response.text
    rows = response.json()["predictions"]
    assert [row["exit"] for row in rows] == [1, 1, 1]
    assert [row["mult_adds"] for row in rows] == [COSTS[0]] * 3
    assert all(0.1 <= row["confidence"] <= 1 for row in rows)
    whole = post(server, {"inputs": images})
    assert whole.status_code == 200


def test_server_answers_400_to_bad_input(server: str):
    image = np.zeros((1, 3, 16, 16), int)
    for content, message in (
        ({"inputs": image[..., :8].tolist()}, "does not match expected shape"),
        ({"inputs": (image / 255).tolist()}, "send pixels as integers from 0 to 255"),
        ({"instances": image.astype(float).tolist()}, "send pixels as integers from 0 to 255"),
        ({"inputs": (image + 256).tolist()}, "pixels must be from 0 to 255"),
        ({"inputs": []}, "Failed to enforce schema"),  # by MLflow, before the model
        ({"inputs": image[0].tolist()}, "add the batch axis"),
        (
            {"inputs": image.tolist(), "params": {"budget_fraction": 0.1}},
            "budget_fraction must be from 0.4091",
        ),
        (
            {"inputs": image.tolist(), "params": {"budget_fraction": "half"}},
            "Can not safely convert",
        ),
        ({"inputs": (image + 256).tolist()}, "256"),
        ({"images": image.tolist()}, "inputs"),
    ):
        response = post(server, content)
        assert response.status_code == 400, (message, response.text)
        assert message in json.loads(response.text)["message"]
