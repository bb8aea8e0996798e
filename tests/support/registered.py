"""Small network trained on digits and registered in MLflow."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from mlflow import MlflowClient

from cluster.config import RegistryConfig
from pipelines.data.config import DataConfig, normalization
from pipelines.evaluation.budgets import Evaluation, evaluate_outputs
from pipelines.model_packaging.contents import make_saved_model
from pipelines.model_packaging.package import RegisteredVersion, register_model
from pipelines.run import EvaluationConfig, Run
from ranet import ModelConfig, OptimConfig, RANet, TrainConfig, mult_adds
from ranet.evaluation.exit_outputs import SplitOutputs, collect_exit_outputs
from ranet.evaluation.forward import ForwardPass
from ranet.model.preprocessing import Normalize
from ranet.model.saved import SavedModel
from ranet.training.loop import fit
from ranet.training.state import TrainState
from tests.support.image_files import dataset_info
from tests.support.tiny import Digits, Recorder

MODEL = ModelConfig(
    scales=(1, 2),
    growth_rate=4,
    growth_factors=(1, 1),
    bottleneck_factors=(1, 1),
    stem_channels=8,
    layers_per_block=2,
    num_blocks=1,
    extra_blocks=2,
    exit_channels=16,
    image_size=16,
)
COSTS = mult_adds(MODEL)
RUN = Run(
    name="tiny",
    model=MODEL,
    data=DataConfig(source="digits", mean=(0.3, 0.3, 0.3), std=(0.4, 0.4, 0.4)),
    train=TrainConfig(epochs=2, batch_size=50, optim=OptimConfig(schedule="cosine")),
    evaluation=EvaluationConfig(budget_fractions=(0.5, 0.75, 1.0)),
    registry=RegistryConfig(model_name="ranet-tiny"),
)
INFO = dataset_info(
    folder="data",
    class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    num_samples={"train": 1000, "val": 300, "test": 300},
    sha256={"train": "1" * 64, "val": "2" * 64, "test": "3" * 64},
    content_sha256={"train": "4" * 64, "val": "5" * 64, "test": "6" * 64},
)


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network, its answers, and the images it was asked about."""

    model: RANet
    val: SplitOutputs
    test: SplitOutputs
    evaluation: Evaluation
    test_images: torch.Tensor = field(repr=False)
    test_labels: torch.Tensor = field(repr=False)


@cache
def trained_network() -> TrainedNetwork:
    torch.manual_seed(0)
    model = RANet(MODEL)
    normalize = Normalize(*normalization(RUN.data))
    train = Digits(0, 800, RUN.train.batch_size, shuffled=True)
    val, test = Digits(1000, 1300, 100), Digits(1300, 1600, 100)
    fit(TrainState(RUN.train, model, normalize), train, val, Recorder())
    answers = [collect_exit_outputs(ForwardPass(model, normalize), split) for split in (val, test)]
    evaluation = evaluate_outputs(COSTS, answers[0], answers[1], RUN.evaluation.budget_fractions)
    return TrainedNetwork(model, answers[0], answers[1], evaluation, test.images, test.labels)


def tiny_saved() -> SavedModel:
    """Return the trained network as it is saved."""
    network = trained_network()
    tags = {"mlflow.source.git.commit": "a" * 40, "git.dirty": "false"}
    return make_saved_model(RUN, network.model.state_dict(), network.evaluation, INFO, tags)


def create_run(client: MlflowClient, folder: Path) -> str:
    """Open a run whose artifacts lie in a folder."""
    experiment = client.get_experiment_by_name("ranet")
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment("ranet", artifact_location=(folder / "artifacts").as_uri())
    )
    return client.create_run(experiment_id).info.run_id


def register_tiny(client: MlflowClient, folder: Path) -> RegisteredVersion:
    """Register the trained network."""
    network = trained_network()
    return register_model(
        RUN, network.model.state_dict(), network.evaluation, INFO, create_run(client, folder)
    )
