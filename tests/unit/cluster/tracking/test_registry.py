"""Registration of versions, and their promotion to candidate and champion."""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.config import RegistryConfig
from cluster.errors import TrackingError
from cluster.tracking import registry
from cluster.tracking.registry import Promotion
from tests.support.registered import create_run

NAME = "ranet-tiny"


@pytest.fixture
def client(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    return MlflowClient()


def register(client: MlflowClient, metric_value: float, protocol: str = "digits") -> str:
    run_id = create_run(client, Path.cwd())
    experiment_id = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, "tiny", source_run_id=run_id)
    version = registry.register(
        NAME, model.model_id, run_id=run_id, metric_value=metric_value, evaluation_protocol=protocol
    )
    return str(version.version)


def promote(client: MlflowClient, metric_value: float, protocol: str = "digits") -> Promotion:
    return registry.promote_if_better(
        NAME, register(client, metric_value, protocol), metric_name="mean top-1"
    )


def aliases(client: MlflowClient) -> dict[str, str]:
    return {key: str(value) for key, value in client.get_registered_model(NAME).aliases.items()}


def test_first_version_becomes_candidate_and_champion(client: MlflowClient):
    promotion = promote(client, 98.5)
    assert aliases(client) == {"candidate": "1", "champion": "1"}
    assert promotion.is_champion
    assert promotion.sentence == "ranet-tiny version 1 is the champion: mean top-1 98.50 %"


@pytest.mark.parametrize("metric_value", [98.5, 99.25])
def test_equal_or_better_version_becomes_the_champion(client: MlflowClient, metric_value: float):
    promote(client, 98.5)
    promotion = promote(client, metric_value)
    assert aliases(client) == {"candidate": "2", "champion": "2"}
    assert promotion.is_champion
    assert promotion.sentence == (
        f"ranet-tiny version 2 is the new champion: mean top-1 {metric_value:.2f} %, version 1 has "
        "98.50 %"
    )


def test_worse_version_stays_candidate_and_the_sentence_gives_both_metrics(client: MlflowClient):
    promote(client, 98.5)
    promotion = promote(client, 98.4999)
    assert aliases(client) == {"candidate": "2", "champion": "1"}
    assert not promotion.is_champion
    assert promotion.sentence == (
        "ranet-tiny version 2 stays candidate: mean top-1 98.50 %, version 1 has 98.50 % "
        "and stays champion"
    )


def test_metrics_of_different_evaluation_protocols_are_not_compared(client: MlflowClient):
    promote(client, 50.0, "flowers")
    promotion = promote(client, 99.0, "digits")
    assert aliases(client) == {"candidate": "2", "champion": "1"}
    assert "evaluated on digits and on flowers" in promotion.sentence
    assert "99.00 %" in promotion.sentence
    assert "50.00 %" in promotion.sentence


def test_champion_without_a_metric_value_is_not_replaced(client: MlflowClient):
    register(client, 98.0)
    version = register(client, 99.0)
    client.delete_model_version_tag(NAME, "1", "metric_value")
    client.delete_model_version_tag(NAME, "1", "evaluation_protocol")
    client.set_registered_model_alias(NAME, "champion", "1")
    promotion = registry.promote_if_better(NAME, version, metric_name="mean top-1")
    assert aliases(client)["champion"] == "1"
    assert "version 1 has no metric value" in promotion.sentence


def test_second_promotion_of_a_version_changes_nothing(client: MlflowClient):
    version = register(client, 98.5)
    first = registry.promote_if_better(NAME, version, metric_name="mean top-1")
    assert registry.promote_if_better(NAME, version, metric_name="mean top-1") == first
    assert aliases(client) == {"candidate": "1", "champion": "1"}


def test_version_of_a_run_is_found(client: MlflowClient):
    run_id = create_run(client, Path.cwd())
    assert registry.find_version(NAME, run_id) is None
    register(client, 98.0)
    assert registry.find_version(NAME, run_id) is None
    experiment_id = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, "tiny", source_run_id=run_id)
    registry.register(
        NAME, model.model_id, run_id=run_id, metric_value=1.0, evaluation_protocol="digits"
    )
    found = registry.find_version(NAME, run_id)
    assert found is not None
    assert str(found.version) == "2"


def test_missing_model_or_server_is_reported_in_one_sentence(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(TrackingError, match=r"cannot load models:/nothing@champion: .*not found"):
        registry.load("models:/nothing@champion")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"http://127.0.0.1:9 cannot load .*start its server"):
        registry.load("models:/nothing@champion")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_name": "a/b"}, "registry.model_name must not be empty or contain slashes"),
        ({"model_name": " "}, "registry.model_name must not be empty"),
    ],
)
def test_invalid_settings_are_rejected(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RegistryConfig(**settings)


@pytest.mark.parametrize(
    ("value", "champion_value", "becomes_champion"),
    [("98.5", "98.5", True), ("98.4", "98.5", False), ("99.0", "98.5", True)],
)
def test_comparison_needs_tags_only(value: str, champion_value: str, becomes_champion: bool):
    tags = {"metric_value": value, "evaluation_protocol": "digits"}
    champion = {"metric_value": champion_value, "evaluation_protocol": "digits"}
    assert registry.compare(tags, champion, "1", "mean top-1")[0] is becomes_champion
    assert registry.compare(tags, None, "None", "mean top-1")[0]
