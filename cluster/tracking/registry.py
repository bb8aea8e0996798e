"""MLflow model registry: versions of a model, and their promotion to champion."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import mlflow
from mlflow import MlflowClient, MlflowException
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import get_model_info
from mlflow.pyfunc import PyFuncModel

from cluster.errors import TrackingError
from cluster.tracking.client import find_experiment, make_client, tracking_uri
from cluster.tracking.database import sqlite_file
from cluster.tracking.failures import FAILURES, explain, first_line, masked

_Value = TypeVar("_Value")

logger = logging.getLogger(__name__)

CANDIDATE = "candidate"
CHAMPION = "champion"
METRIC_TAG = "metric_value"
PROTOCOL_TAG = "evaluation_protocol"


@dataclass(frozen=True)
class Promotion:
    """Decision on a version: whether it becomes the champion, and why."""

    version: str
    is_champion: bool
    sentence: str


@contextmanager
def client_to(action: str) -> Iterator[MlflowClient]:
    """Yield an MLflow client, and explain its failures in one sentence.

    Args:
        action: purpose of the client, to complete the sentence "MLflow cannot ...".

    Raises:
        TrackingError: names the server, the action, and the cause.
    """
    try:
        yield make_client(tracking_uri())
    except FAILURES as error:
        raise TrackingError(
            f"MLflow at {masked(tracking_uri())} cannot {action}: {explain(error)}"
        ) from error


def load(model_uri: str) -> PyFuncModel:
    """Load a model by URI, such as `models:/NAME@champion`.

    Loading runs the code that was logged with the model.

    Raises:
        TrackingError: MLflow has no such model, or cannot be used.
    """
    return _fetch(model_uri, mlflow.pyfunc.load_model)


def download(model_uri: str, folder: str) -> Path:
    """Download the files of a model, without executing its code.

    Args:
        model_uri: URI of the model, such as `models:/NAME@champion`.
        folder: local folder for the files.

    Raises:
        TrackingError: MLflow has no such model, or cannot be used.
    """
    return Path(_fetch(model_uri, partial(download_artifacts, dst_path=folder)))


def add_files(model_uri: str, folder: Path, artifact_path: str) -> None:
    """Store the files of a folder with a registered model.

    Args:
        model_uri: URI of the model, such as `models:/NAME@champion`.
        folder: local folder.
        artifact_path: folder among the files of the model; existing files are replaced.

    Raises:
        TrackingError: MLflow has no such model, or cannot be used.
    """
    model_id = _fetch(model_uri, get_model_info).model_id
    with client_to(f"store files with {model_uri}") as client:
        client.log_model_artifacts(model_id, str(folder), artifact_path)


def _fetch(model_uri: str, fetch: Callable[[str], _Value]) -> _Value:
    """Fetch a model from MLflow, and explain failures."""
    uri = tracking_uri()
    if (file := sqlite_file(uri)) is not None and not file.exists():  # a query would create it
        raise TrackingError(
            f"MLflow cannot load {model_uri}: there is no {file}; run the command in the folder of "
            "the training, or set MLFLOW_TRACKING_URI to the MLflow that has the model"
        )
    with client_to(f"load {model_uri}") as client:
        find_experiment(client, uri)  # a moved database has no artifacts
        try:
            return fetch(model_uri)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            names = [model.name for model in client.search_registered_models(max_results=10)]
            raise TrackingError(
                f"MLflow at {masked(uri)} cannot load {model_uri}: {first_line(error)}; give "
                "models:/NAME/VERSION or models:/NAME@champion; its registered models: "
                f"{', '.join(names) or 'none'}"
            ) from error


def find_version(name: str, run_id: str) -> ModelVersion | None:
    """Return the newest model version that a run registered, if any."""
    with client_to(f"look for versions of {name}") as client:
        versions = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    return max(versions, key=lambda version: int(version.version), default=None)


def register(
    name: str, model_id: str, *, run_id: str, metric_value: float, evaluation_protocol: str
) -> ModelVersion:
    """Make a logged model the next version of a registered one.

    Args:
        name: registered name, created if it is new.
        model_id: the logged model.
        run_id: the run that logged it.
        metric_value: metric that versions are compared by, in percent; higher is better.
        evaluation_protocol: data and budgets of the evaluation; only values of the same protocol
            are compared.
    """
    with client_to(f"register a version of {name}") as client:
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return client.create_model_version(
            name,
            source=f"models:/{model_id}",
            run_id=run_id,
            model_id=model_id,
            tags={METRIC_TAG: repr(metric_value), PROTOCOL_TAG: evaluation_protocol},
        )


def promote_if_better(name: str, version: str, *, metric_name: str) -> Promotion:
    """Make a version the candidate, and the champion if it is better.

    `compare` decides whether the version becomes the champion. A second call for the same version
    changes nothing.

    Args:
        name: registered name.
        version: a version created by `register`.
        metric_name: name of the metric, for the sentence.
    """
    with client_to(f"set the aliases of {name}") as client:
        client.set_registered_model_alias(name, CANDIDATE, version)
        tags = client.get_model_version(name, version).tags
        champion = client.get_registered_model(name).aliases.get(CHAMPION)
        champion_tags = None
        if champion is not None and str(champion) != version:
            champion_tags = client.get_model_version(name, str(champion)).tags
        is_champion, reason = compare(tags, champion_tags, str(champion), metric_name)
        if is_champion:
            client.set_registered_model_alias(name, CHAMPION, version)
    sentence = f"{name} version {version} {reason}"
    logger.info("%s", sentence)
    return Promotion(version=version, is_champion=is_champion, sentence=sentence)


def compare(
    tags: Mapping[str, str],
    champion_tags: Mapping[str, str] | None,
    champion: str,
    metric_name: str,
) -> tuple[bool, str]:
    """Decide whether a version replaces the champion.

    It does if there is no other champion, or if both were evaluated by the same protocol and its
    metric is not lower.

    Args:
        tags: tags of the version.
        champion_tags: tags of the champion, None if there is no other version with that alias.
        champion: version of the champion, for the reason.
        metric_name: name of the metric, for the reason.

    Returns:
        Whether the version becomes the champion, and the reason, which completes a sentence.
    """
    if champion_tags is None:
        return True, f"is the champion: {metric_name} {_metric_text(tags)}"
    numbers = (
        f"{metric_name} {_metric_text(tags)}, version {champion} has {_metric_text(champion_tags)}"
    )
    if champion_tags.get(PROTOCOL_TAG) != tags[PROTOCOL_TAG]:
        return False, (
            f"stays candidate: {numbers}, but the two are not comparable: evaluated on "
            f"{tags[PROTOCOL_TAG]} and on {champion_tags.get(PROTOCOL_TAG, 'unknown data')}; "
            "to make it champion anyway, move the alias in MLflow"
        )
    if float(tags[METRIC_TAG]) >= float(champion_tags[METRIC_TAG]):
        return True, f"is the new champion: {numbers}"
    return False, f"stays candidate: {numbers} and stays champion"


def _metric_text(tags: Mapping[str, str]) -> str:
    return f"{float(tags[METRIC_TAG]):.2f} %" if METRIC_TAG in tags else "no metric value"
