"""The model registry: versions of a model, and which of them is the champion."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
from mlflow import MlflowClient, MlflowException
from mlflow.entities.model_registry import ModelVersion
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.pyfunc import PyFuncModel

from cluster.errors import TrackingError
from cluster.tracking.client import FAILURES, explain, make_client, masked, tracking_uri

logger = logging.getLogger(__name__)

CANDIDATE = "candidate"
CHAMPION = "champion"
_METRIC_TAG = "score"
_PROTOCOL_TAG = "yardstick"


@dataclass(frozen=True)
class Promotion:
    """What became of a version that was offered."""

    version: str
    is_champion: bool
    sentence: str


@contextmanager
def client_to(action: str) -> Iterator[MlflowClient]:
    """A client of this process's MLflow; any failure of it, or of its store, is one sentence.

    Args:
        action: what the client is for, to complete "MLflow cannot ...".

    Raises:
        TrackingError: names the server, the action, and what went wrong.
    """
    try:
        yield make_client(tracking_uri())
    except FAILURES as error:
        raise TrackingError(
            f"MLflow at {masked(tracking_uri())} cannot {action}: {explain(error)}"
        ) from error


def load(model_uri: str) -> PyFuncModel:
    """Load a model, such as `models:/NAME@champion`; this runs the code it was logged with."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with client_to(f"load {model_uri}"):
        return mlflow.pyfunc.load_model(model_uri)


def find_version(name: str, run_id: str) -> ModelVersion | None:
    """The newest version of the model that a run registered, if it did."""
    with client_to(f"look for versions of {name}") as client:
        versions = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    return max(versions, key=lambda version: int(version.version), default=None)


def register(
    name: str, model_id: str, *, run_id: str, score: float, yardstick: str
) -> ModelVersion:
    """Make a logged model the next version of a registered one.

    Args:
        name: registered name, created where it is new.
        model_id: the logged model.
        run_id: the run that made it.
        score: what versions are compared by, in percent; higher is better.
        yardstick: what the score was measured on; only scores of one yardstick are compared.
    """
    with client_to(f"register a version of {name}") as client:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                raise
        return client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags={_METRIC_TAG: repr(score), _PROTOCOL_TAG: yardstick},
        )


def offer(name: str, version: str, *, score_name: str) -> Promotion:
    """Make a version the candidate, and the champion where it is at least as good.

    It becomes the champion where there is none, or where both were measured by the same
    yardstick and its score is not the lower one. Offering a version again changes nothing.

    Args:
        name: registered name.
        version: a version made by `register`.
        score_name: what the score is, for the sentence.
    """
    with client_to(f"set the aliases of {name}") as client:
        client.set_registered_model_alias(name, CANDIDATE, version)
        tags = client.get_model_version(name, version).tags
        champion = client.get_registered_model(name).aliases.get(CHAMPION)
        if champion is None or str(champion) == version:
            is_champion, words = True, f"is the champion: {score_name} {_score(tags)}"
        else:
            rival = client.get_model_version(name, str(champion)).tags
            is_champion, words = _compare(tags, rival, str(champion), score_name)
        if is_champion:
            client.set_registered_model_alias(name, CHAMPION, version)
    sentence = f"{name} version {version} {words}"
    logger.info("%s", sentence)
    return Promotion(version=version, is_champion=is_champion, sentence=sentence)


def _compare(
    tags: dict[str, str], rival: dict[str, str], champion: str, score_name: str
) -> tuple[bool, str]:
    """Whether a version with these tags replaces the champion, and the words for it."""
    numbers = f"{score_name} {_score(tags)}, version {champion} has {_score(rival)}"
    if rival.get(_PROTOCOL_TAG) != tags[_PROTOCOL_TAG]:
        return False, (
            f"stays candidate: {numbers}, but the two do not compare: measured on "
            f"{tags[_PROTOCOL_TAG]} and on {rival.get(_PROTOCOL_TAG, 'something unknown')}; "
            "to make it champion all the same, move the alias in MLflow"
        )
    if float(tags[_METRIC_TAG]) >= float(rival[_METRIC_TAG]):
        return True, f"is the new champion: {numbers}"
    return False, f"stays candidate: {numbers} and stays champion"


def _score(tags: dict[str, str]) -> str:
    return f"{float(tags[_METRIC_TAG]):.2f} %" if _METRIC_TAG in tags else "no score"
