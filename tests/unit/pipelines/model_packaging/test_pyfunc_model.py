"""Registered model: predictions within a budget, lazy evaluation, dependencies, errors."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient, MlflowException
from mlflow.pyfunc import PyFuncModel

import ranet
from cluster.tracking import registry
from pipelines.evaluation.budgets import evaluate_outputs
from pipelines.model_packaging.package import RegisteredVersion, register_model
from ranet.evaluation.exit_outputs import SplitOutputs
from ranet.inference.thresholds import assign_exits
from tests.support.registered import COSTS, INFO, MODEL, RUN, create_run, trained_network

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
SMALLEST = COSTS[0] / COSTS[-1]


@pytest.fixture(scope="module")
def test_images() -> np.ndarray:
    return trained_network().test_images.numpy()


@pytest.mark.parametrize("budget", [0.5, 0.75, 1.0])
def test_predictions_match_the_full_forward_pass_with_thresholds(
    model: PyFuncModel, test_images: np.ndarray, budget: float
):
    network = trained_network()
    rows = {row.budget_fraction: row for row in network.evaluation.curve}
    scores = network.test.of(network.evaluation.exit_ensemble)
    exits = assign_exits(scores.confidences, torch.tensor(rows[budget].thresholds))
    predictions = model.predict(test_images, params={"budget_fraction": budget})
    assert predictions["exit"].tolist() == (exits + 1).tolist()
    expected = scores.confidences.gather(0, exits[None])[0]
    np.testing.assert_allclose(predictions["confidence"], expected, atol=5e-5)
    is_right = predictions["label"].to_numpy() == network.test_labels.numpy()
    assert 100 * is_right.mean() == pytest.approx(rows[budget].test_top1)
    assert [INFO.class_names[label] for label in predictions["label"]] == predictions[
        "class_name"
    ].tolist()
    assert predictions["mult_adds"].mean() <= rows[budget].test_mult_adds


def test_loaded_model_uses_the_ensemble_it_was_registered_with(
    client: MlflowClient, mlflow_folder: Path, test_images: np.ndarray
):
    network = trained_network()
    val, test = (SplitOutputs(each.ensemble, each.ensemble) for each in (network.val, network.test))
    evaluation = replace(
        evaluate_outputs(COSTS, val, test, RUN.evaluation.budget_fractions),
        exit_ensemble="mean_logits",
    )
    run = replace(RUN, registry=replace(RUN.registry, model_name="ensemble"))
    weights = network.model.state_dict()
    register_model(run, weights, evaluation, INFO, create_run(client, mlflow_folder))
    predictions = registry.load("models:/ensemble/1").predict(
        test_images, params={"budget_fraction": 0.75}
    )
    (row,) = (row for row in evaluation.reported if row.budget_fraction == 0.75)
    exits = assign_exits(test.ensemble.confidences, torch.tensor(row.thresholds))
    assert predictions["exit"].tolist() == (exits + 1).tolist()
    expected = test.ensemble.confidences.gather(0, exits[None])[0]
    np.testing.assert_allclose(predictions["confidence"], expected, atol=5e-5)
    single = network.test.single.confidences.gather(0, exits[None])[0]
    assert not np.allclose(predictions["confidence"], single, atol=5e-5)


def test_model_uses_the_largest_of_at_least_40_budgets_within_the_request(
    model: PyFuncModel, test_images: np.ndarray
):
    budgets = [row.budget_fraction for row in model.unwrap_python_model().classifier.metadata.curve]
    assert len(budgets) >= 40
    assert budgets[0] == SMALLEST
    assert budgets[-1] == 1
    asked, within, above = (
        model.predict(test_images, params={"budget_fraction": budget})["exit"].tolist()
        for budget in (0.5099, 0.5, SMALLEST)
    )
    assert asked == within
    assert asked != above


def test_smallest_budget_runs_only_the_first_exit(model: PyFuncModel, test_images: np.ndarray):
    network = model.unwrap_python_model().classifier.network
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    predictions = model.predict(test_images, params={"budget_fraction": SMALLEST})
    for hook in hooks:
        hook.remove()
    assert len(hooks) == MODEL.num_exits
    assert len(set(ran)) == 1
    assert predictions["exit"].unique().tolist() == [1]
    assert predictions["mult_adds"].unique().tolist() == [COSTS[0]]


def test_budget_defaults_to_all_mult_adds(model: PyFuncModel, test_images: np.ndarray):
    whole = model.predict(test_images, params={"budget_fraction": 1.0})
    assert model.predict(test_images).equals(whole)
    assert model.predict(test_images, params={"budget_fraction": None}).equals(whole)


@pytest.mark.parametrize("count", [1, 300])
def test_batch_of_any_size_gives_the_same_predictions(
    model: PyFuncModel, test_images: np.ndarray, count: int
):
    whole = model.predict(test_images)
    predictions = model.predict(test_images[:count])
    assert len(predictions) == count
    assert predictions["label"].tolist() == whole["label"].tolist()[:count]


@pytest.mark.parametrize("budget", [0.1, SMALLEST - 1e-6, 1.001, float("nan")])
def test_impossible_budget_is_rejected_with_the_smallest_valid_one(
    model: PyFuncModel, budget: float
):
    with pytest.raises(
        MlflowException, match=r"budget_fraction must be from 0.4091 .* to 1 "
    ) as caught:
        model.predict(IMAGES, params={"budget_fraction": budget})
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    model.predict(IMAGES, params={"budget_fraction": 0.4091})


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
        (IMAGES[:0], 1.0, "contains no images"),
        (IMAGES[0], 1.0, "add the batch axis"),
        (IMAGES.astype(np.int64), 1.0, "dtype of input int64 does not match"),
        ((IMAGES / 255).astype(object), 1.0, "values of type float; send pixels as integers"),
        (IMAGES.astype(float).astype(object), 1.0, "values of type float; send pixels as integers"),
        ((IMAGES > 9).astype(object), 1.0, "values of type bool"),
        (IMAGES.astype(object) + 1, 1.0, "pixels must be from 0 to 255, got values from 1 to 256"),
        (IMAGES.astype(object) - 1, 1.0, "pixels must be from 0 to 255, got values from -1"),
        (np.array([[1], [1, 2]], dtype=object), 1.0, r"Shape of input \(2,\) does not match"),
        (IMAGES, "half", "Can not safely convert .* for value `half`"),
    ],
)
def test_invalid_inputs_are_rejected(
    model: PyFuncModel, images: np.ndarray, budget: object, message: str
):
    with pytest.raises(MlflowException, match=message):
        model.predict(images, params={"budget_fraction": budget})


def test_numbers_of_a_request_give_the_same_predictions(model: PyFuncModel):
    expected = model.predict(IMAGES)
    assert model.predict(IMAGES.astype(object)).equals(expected)


def test_versions_of_a_model_run_their_own_code_in_one_process(
    client: MlflowClient, version: RegisteredVersion, mlflow_folder: Path, monkeypatch, tmp_path
):
    """Log the second version from a changed copy of the code."""
    copy = tmp_path / "ranet"
    shutil.copytree(Path(ranet.__file__).parent, copy)
    cascade = copy / "inference" / "cascade.py"
    cascade.write_text(f"{cascade.read_text()}\nMARK = 'second'\n")
    network = trained_network()
    run = replace(RUN, registry=replace(RUN.registry, model_name="second"))
    with monkeypatch.context() as patch:
        patch.setattr(ranet, "__file__", str(copy / "__init__.py"))
        weights = network.model.state_dict()
        register_model(run, weights, network.evaluation, INFO, create_run(client, mlflow_folder))
    first, second = (
        registry.load(uri)
        for uri in (f"models:/{version.name}/{version.version}", "models:/second/1")
    )
    modules = []
    for each in (first, second, first):
        each.predict(IMAGES)
        code = type(each.unwrap_python_model().classifier.network).__module__.partition(".")[0]
        modules.append(sys.modules[f"{code}.inference.cascade"])
    assert [hasattr(module, "MARK") for module in modules] == [False, True, False]
    assert not hasattr(sys.modules["ranet.inference.cascade"], "MARK")


def test_model_loads_without_ray_ffcv_and_pipelines(
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
predictions = model.predict(np.zeros((2, 3, 16, 16), np.uint8), params={"budget_fraction": 0.5})
assert list(predictions) == ["label", "class_name", "confidence", "exit", "mult_adds"]
assert "ranet" not in sys.modules
[code] = {name.partition(".")[0] for name in sys.modules if name.startswith("ranet_")}
assert "/code/" in sys.modules[code].__file__
"""
    done = subprocess.run(
        [sys.executable, "-c", script, f"models:/{version.name}/{version.version}"],
        cwd=mlflow_folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
