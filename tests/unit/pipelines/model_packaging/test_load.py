"""Trained networks by registry URI, run, name and folder."""

import json
import shlex
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from cluster.cli import parse_settings
from cluster.errors import TrackingError
from cluster.storage.checkpoints import SNAPSHOT, write_checkpoint
from cluster.tracking import registry
from pipelines.data.summary import summary_of
from pipelines.model_packaging.load import load_classifier, load_saved
from pipelines.model_packaging.package import RegisteredVersion
from pipelines.run import Run, config_text
from pipelines.workers import EXIT_OUTPUTS
from ranet import SavedModel, write_model
from tests.support.registered import INFO, RUN, create_run, tiny_saved, trained_network


def assert_same_network(first: SavedModel, second: SavedModel) -> None:
    assert first.weights.keys() == second.weights.keys()
    assert all(torch.equal(tensor, second.weights[name]) for name, tensor in first.weights.items())
    assert first.metadata.curve == second.metadata.curve
    assert first.metadata.exits == second.metadata.exits
    assert first.metadata.preprocessing == second.metadata.preprocessing
    assert first.metadata.data == second.metadata.data


def test_registered_model_contains_the_folder_of_the_network(
    version: RegisteredVersion, mlflow_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def run_no_code(uri: str) -> None:
        raise AssertionError(f"the code of {uri} ran")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.pyfunc, "load_model", run_no_code)
        for uri in (f"models:/{version.name}@champion", f"models:/{version.model_id}"):
            assert_same_network(load_saved(uri), tiny_saved())
    [card] = mlflow_folder.rglob("artifacts/network/README.md")
    assert card.read_text().startswith("# ranet-tiny\n")


def test_folder_and_registered_model_classify_alike(version: RegisteredVersion, tmp_path: Path):
    write_model(tmp_path / "tiny", tiny_saved())
    images = trained_network().test_images[:50]
    uri = f"models:/{version.name}/{version.version}"
    own, registered = (load_classifier(each) for each in (str(tmp_path / "tiny"), uri))
    assert type(own).__module__ == "ranet.inference.classifier"
    assert type(registered).__module__.startswith("ranet_")  # the model's own code
    found = [each.classify(images, 0.5) for each in (own, registered)]
    assert torch.equal(found[0].labels, found[1].labels)
    assert torch.equal(found[0].exits, found[1].exits)
    table = registry.load(uri).predict(images.numpy(), params={"budget_fraction": 0.5})
    assert table["label"].tolist() == found[0].labels.tolist()


def log_results(client: MlflowClient, folder: Path, tmp_path: Path) -> str:
    """Log what a finished training leaves in its MLflow run."""
    network = trained_network()
    run_id = create_run(client, folder)
    client.set_tag(run_id, "mlflow.source.git.commit", "a" * 40)
    client.log_text(run_id, config_text(RUN), "config.yaml")
    client.log_dict(run_id, json.loads(json.dumps(summary_of(INFO))), "images/summary.json")
    outputs = {"val": network.val.state(), "test": network.test.state()}
    snapshot = {"best": {"model": network.model.state_dict()}, "history": []}
    (tmp_path / "last").mkdir()
    write_checkpoint(tmp_path / "last", {SNAPSHOT: snapshot, EXIT_OUTPUTS: outputs})
    client.log_artifacts(run_id, str(tmp_path / "last"), "checkpoints/last")
    return run_id


def test_finished_run_gives_the_network_that_it_registers(
    client: MlflowClient, mlflow_folder: Path, tmp_path: Path
):
    run_id = log_results(client, mlflow_folder, tmp_path)
    found = load_saved(f"runs:/{run_id}")
    assert_same_network(found, tiny_saved())
    assert found.metadata == tiny_saved().metadata
    assert load_classifier(f"runs:/{run_id}").metadata == found.metadata


def test_run_without_results_is_rejected(client: MlflowClient, mlflow_folder: Path):
    run_id = create_run(client, mlflow_folder)
    with pytest.raises(TrackingError, match=f"run {run_id} has no results of a training"):
        load_saved(f"runs:/{run_id}")
    with pytest.raises(TrackingError, match="cannot read the artifacts of run"):
        load_saved(f"runs:/{'0' * 32}")


def test_unknown_name_is_rejected_and_unknown_uri_lists_the_models(version: RegisteredVersion):
    with pytest.raises(FileNotFoundError, match="resnet50 is neither a trained network"):
        load_saved("resnet50")
    with pytest.raises(TrackingError, match=f"registered models: .*{version.name}"):
        load_saved("models:/nothing/1")


def test_registered_model_of_another_format_names_its_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "MLmodel").write_text("run_id: abc\nflavors: {}\n")
    monkeypatch.setattr(registry, "download", lambda uri, folder: tmp_path)
    with pytest.raises(TrackingError, match=r"contains no network folder .* give runs:/abc"):
        load_saved("models:/old/1")


def test_command_of_a_network_repeats_its_settings():
    command = tiny_saved().metadata.origin.command
    program, script, *arguments = shlex.split(command)
    assert (program, script) == ("python", "pipelines/train.py")
    run = parse_settings(Run, arguments)
    assert (run.model, run.train, run.evaluation) == (RUN.model, RUN.train, RUN.evaluation)
    assert run.data.source == "digits"
