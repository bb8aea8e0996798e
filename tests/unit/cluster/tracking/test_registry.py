"""Which version is candidate, which is champion, and what is said about it."""

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


def register(client: MlflowClient, score: float, yardstick: str = "digits") -> str:
    run_id = create_run(client, Path.cwd())
    experiment_id = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, "tiny", source_run_id=run_id)
    version = registry.register(
        NAME, model.model_id, run_id=run_id, score=score, yardstick=yardstick
    )
    return str(version.version)


def offer(client: MlflowClient, score: float, yardstick: str = "digits") -> Promotion:
    return registry.offer(NAME, register(client, score, yardstick), score_name="mean top-1")


def aliases(client: MlflowClient) -> dict[str, str]:
    return {key: str(value) for key, value in client.get_registered_model(NAME).aliases.items()}


def test_the_first_version_is_candidate_and_champion(client: MlflowClient):
    verdict = offer(client, 98.5)
    assert aliases(client) == {"candidate": "1", "champion": "1"}
    assert verdict.is_champion
    assert verdict.sentence == "ranet-tiny version 1 is the champion: mean top-1 98.50 %"


@pytest.mark.parametrize("score", [98.5, 99.25])
def test_an_equal_or_better_version_becomes_the_champion(client: MlflowClient, score: float):
    offer(client, 98.5)
    verdict = offer(client, score)
    assert aliases(client) == {"candidate": "2", "champion": "2"}
    assert verdict.is_champion
    assert verdict.sentence == (
        f"ranet-tiny version 2 is the new champion: mean top-1 {score:.2f} %, version 1 has 98.50 %"
    )


def test_a_worse_version_stays_candidate_and_the_verdict_names_both_numbers(client: MlflowClient):
    offer(client, 98.5)
    verdict = offer(client, 98.4999)
    assert aliases(client) == {"candidate": "2", "champion": "1"}
    assert not verdict.is_champion
    assert verdict.sentence == (
        "ranet-tiny version 2 stays candidate: mean top-1 98.50 %, version 1 has 98.50 % "
        "and stays champion"
    )


def test_scores_measured_on_different_things_are_not_compared(client: MlflowClient):
    offer(client, 50.0, "flowers")
    verdict = offer(client, 99.0, "digits")
    assert aliases(client) == {"candidate": "2", "champion": "1"}
    assert "measured on digits and on flowers" in verdict.sentence
    assert "99.00 %" in verdict.sentence
    assert "50.00 %" in verdict.sentence


def test_a_champion_without_a_score_is_not_replaced(client: MlflowClient):
    register(client, 98.0)
    version = register(client, 99.0)
    client.delete_model_version_tag(NAME, "1", "score")
    client.delete_model_version_tag(NAME, "1", "yardstick")
    client.set_registered_model_alias(NAME, "champion", "1")
    verdict = registry.offer(NAME, version, score_name="mean top-1")
    assert aliases(client)["champion"] == "1"
    assert "version 1 has no score" in verdict.sentence


def test_offering_a_version_again_changes_nothing(client: MlflowClient):
    version = register(client, 98.5)
    first = registry.offer(NAME, version, score_name="mean top-1")
    assert registry.offer(NAME, version, score_name="mean top-1") == first
    assert aliases(client) == {"candidate": "1", "champion": "1"}


def test_the_version_of_a_run_is_found_again(client: MlflowClient):
    run_id = create_run(client, Path.cwd())
    assert registry.find_version(NAME, run_id) is None
    register(client, 98.0)
    assert registry.find_version(NAME, run_id) is None
    experiment_id = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, "tiny", source_run_id=run_id)
    registry.register(NAME, model.model_id, run_id=run_id, score=1.0, yardstick="digits")
    found = registry.find_version(NAME, run_id)
    assert found is not None
    assert str(found.version) == "2"


def test_a_missing_model_or_server_is_one_clear_sentence(
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
        ({"model_name": "a/b"}, "registry.model_name must be a name without slashes"),
        ({"model_name": " "}, "registry.model_name must be a name"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RegistryConfig(**settings)
