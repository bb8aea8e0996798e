"""The registered model: answers within a budget, stops early, needs little, explains errors."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient, MlflowException
from mlflow.pyfunc import PyFuncModel

from cluster.tracking import registry
from pipelines.evaluation.report import RegisteredVersion, evaluate_outputs, register_model
from ranet.evaluation.exit_outputs import SplitOutputs
from ranet.inference.thresholds import assign_exits
from tests.support.registered import (
    COSTS,
    INFO,
    MODEL,
    RUN,
    create_run,
    register_tiny,
    trained_network,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
SMALLEST = COSTS[0] / COSTS[-1]


@pytest.fixture(scope="module")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def client(mlflow_folder: Path, empty_database: Path) -> Iterator[MlflowClient]:
    shutil.copy(empty_database, mlflow_folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{mlflow_folder}/mlflow.db")
        patch.chdir(mlflow_folder)
        yield MlflowClient()


@pytest.fixture(scope="module")
def version(client: MlflowClient, mlflow_folder: Path) -> RegisteredVersion:
    return register_tiny(client, mlflow_folder)


@pytest.fixture(scope="module")
def model(version: RegisteredVersion) -> PyFuncModel:
    return registry.load(f"models:/{version.name}@champion")


@pytest.fixture(scope="module")
def test_images() -> np.ndarray:
    return trained_network().test_images.numpy()


@pytest.mark.parametrize("budget", [0.5, 0.75, 1.0])
def test_answers_are_those_of_the_full_pass_and_its_thresholds(
    model: PyFuncModel, test_images: np.ndarray, budget: float
):
    network = trained_network()
    rows = {row.budget: row for row in network.evaluation.curve}
    scores = network.test.of(network.evaluation.exit_ensemble)
    exits = assign_exits(scores.confidences, torch.tensor(rows[budget].thresholds))
    answers = model.predict(test_images, params={"budget": budget})
    assert answers["exit"].tolist() == (exits + 1).tolist()
    expected = scores.confidences.gather(0, exits[None])[0]
    np.testing.assert_allclose(answers["confidence"], expected, atol=5e-5)
    is_right = answers["label"].to_numpy() == network.test_labels.numpy()
    assert 100 * is_right.mean() == pytest.approx(rows[budget].test_top1)
    assert [INFO.class_names[label] for label in answers["label"]] == answers["class_name"].tolist()
    assert answers["mult_adds"].mean() <= rows[budget].test_mult_adds


def test_a_model_whose_exits_answer_together_does_so_where_it_is_loaded(
    client: MlflowClient, mlflow_folder: Path, test_images: np.ndarray
):
    network = trained_network()
    val, test = (SplitOutputs(each.ensemble, each.ensemble) for each in (network.val, network.test))
    evaluation = replace(
        evaluate_outputs(COSTS, val, test, RUN.evaluation.budget_fractions),
        exit_ensemble="mean_logits",
    )
    run = replace(RUN, registry=replace(RUN.registry, model="ensemble"))
    weights = network.model.state_dict()
    register_model(run, weights, evaluation, INFO, create_run(client, mlflow_folder))
    answers = registry.load("models:/ensemble/1").predict(test_images, params={"budget": 0.75})
    (row,) = (row for row in evaluation.reported if row.budget == 0.75)
    exits = assign_exits(test.ensemble.confidences, torch.tensor(row.thresholds))
    assert answers["exit"].tolist() == (exits + 1).tolist()
    expected = test.ensemble.confidences.gather(0, exits[None])[0]
    np.testing.assert_allclose(answers["confidence"], expected, atol=5e-5)
    single = network.test.single.confidences.gather(0, exits[None])[0]
    assert not np.allclose(answers["confidence"], single, atol=5e-5)


def test_a_model_comes_with_at_least_40_budgets_and_takes_the_largest_within_the_request(
    model: PyFuncModel, test_images: np.ndarray
):
    budgets = model.unwrap_python_model().settings["budgets"]
    assert len(budgets) >= 40
    assert budgets[0] == SMALLEST
    assert budgets[-1] == 1
    asked, within, above = (
        model.predict(test_images, params={"budget": budget})["exit"].tolist()
        for budget in (0.5099, 0.5, SMALLEST)
    )
    assert asked == within
    assert asked != above


def test_the_smallest_budget_runs_the_first_exit_alone(model: PyFuncModel, test_images: np.ndarray):
    network = model.unwrap_python_model().model
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    answers = model.predict(test_images, params={"budget": SMALLEST})
    for hook in hooks:
        hook.remove()
    assert len(hooks) == MODEL.num_exits
    assert len(set(ran)) == 1
    assert answers["exit"].unique().tolist() == [1]
    assert answers["mult_adds"].unique().tolist() == [COSTS[0]]


def test_without_a_budget_all_mult_adds_may_be_used(model: PyFuncModel, test_images: np.ndarray):
    whole = model.predict(test_images, params={"budget": 1.0})
    assert model.predict(test_images).equals(whole)
    assert model.predict(test_images, params={"budget": None}).equals(whole)


@pytest.mark.parametrize("count", [0, 1, 300])
def test_a_batch_may_have_any_size(model: PyFuncModel, test_images: np.ndarray, count: int):
    whole = model.predict(test_images)
    answers = model.predict(test_images[:count])
    assert len(answers) == count
    assert answers["label"].tolist() == whole["label"].tolist()[:count]


@pytest.mark.parametrize("budget", [0.1, SMALLEST - 1e-6, 1.001, float("nan")])
def test_a_budget_that_cannot_be_kept_is_an_error_that_names_the_smallest(
    model: PyFuncModel, budget: float
):
    with pytest.raises(MlflowException, match=r"budget must be from 0.4091 .* to 1 ") as caught:
        model.predict(IMAGES, params={"budget": budget})
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    model.predict(IMAGES, params={"budget": 0.4091})


@pytest.mark.parametrize(
    ("images", "budget", "message"),
    [
        (IMAGES[0], 1.0, r"Shape of input \(3, 16, 16\) does not match"),
        (IMAGES[..., :8], 1.0, r"Shape of input \(4, 3, 16, 8\) does not match"),
        (
            IMAGES.astype(np.float32),
            1.0,
            "dtype of input float32 does not match expected dtype uint8",
        ),
        (IMAGES, "half", "Can not safely convert .* for value `half`"),
    ],
)
def test_images_of_another_form_are_refused(
    model: PyFuncModel, images: np.ndarray, budget: object, message: str
):
    with pytest.raises(MlflowException, match=message):
        model.predict(images, params={"budget": budget})


def test_a_run_that_registers_again_makes_no_second_version(
    client: MlflowClient, version: RegisteredVersion
):
    network = trained_network()
    run_id = client.get_model_version(version.name, version.version).run_id
    assert run_id is not None
    again = register_model(RUN, network.model.state_dict(), network.evaluation, INFO, run_id)
    assert again == version
    assert len(client.search_model_versions(f"name='{version.name}'")) == 1
    assert client.get_run(run_id).info.status == "RUNNING"


def test_the_model_needs_neither_ray_nor_ffcv_nor_the_pipelines(
    version: RegisteredVersion, mlflow_folder: Path
):
    script = """
import sys

class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {
            "ray", "ffcv", "pipelines", "cluster", "tuning", "torchvision", "jsonargparse", "boto3"
        }:
            raise ModuleNotFoundError(f"no {name} here")

sys.meta_path.insert(0, Nowhere())
import mlflow
import numpy as np

model = mlflow.pyfunc.load_model(sys.argv[1])
answers = model.predict(np.zeros((2, 3, 16, 16), np.uint8), params={"budget": 0.5})
assert list(answers) == ["label", "class_name", "confidence", "exit", "mult_adds"]
import ranet
assert "/code/" in ranet.__file__, ranet.__file__
"""
    done = subprocess.run(
        [sys.executable, "-c", script, f"models:/{version.name}/{version.version}"],
        cwd=mlflow_folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
