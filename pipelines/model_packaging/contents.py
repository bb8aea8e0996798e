"""Saved model of a run: metadata and best weights."""

import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath

from torch import Tensor

from pipelines.data.config import normalization
from pipelines.data.format.metadata import DatasetInfo, with_normalization
from pipelines.data.loading.augmentation import EVALUATED_SHARE
from pipelines.evaluation.budgets import Evaluation
from pipelines.run import Run, flatten
from ranet.model.metadata import DataRecord, ModelMetadata, Origin, Preprocessing
from ranet.model.saved import SavedModel

LICENCE = "Weights: Apache-2.0, as the code. Data: the licence of the data set."
_COMMIT_TAG = "mlflow.source.git.commit"
_DIRTY_TAG = "git.dirty"
_SOURCE_PATHS = {"data.source_dir": "FOLDER", "data.class_index": "FILE"}
"""Paths of the machine that trained, and what the command shows in their stead."""
_NOT_SHOWN = ("name", "data.prepared_dir", "data.decode_threads", "cluster.", "registry.")
"""Settings that change neither weights nor accuracy."""
_WORKERS = "cluster.num_workers"


def make_saved_model(
    run: Run,
    weights: dict[str, Tensor],
    evaluation: Evaluation,
    info: DatasetInfo,
    tags: Mapping[str, str],
) -> SavedModel:
    """Describe the trained network of a run.

    Args:
        run: the run that trained the network.
        weights: state dict of the network.
        evaluation: accuracies and thresholds of the network.
        info: images that it was trained and evaluated on.
        tags: tags of the MLflow run, which name the commit.
    """
    mean, std = normalization(with_normalization(run.data, info))
    metadata = ModelMetadata(
        name=run.registry.model_name,
        model=run.model,
        class_names=tuple(info.class_names),
        preprocessing=Preprocessing(
            image_size=run.model.image_size, crop_share=EVALUATED_SHARE, mean=mean, std=std
        ),
        exit_ensemble=evaluation.exit_ensemble,
        exits=evaluation.exits,
        curve=evaluation.curve,
        data=DataRecord(
            name=PurePosixPath(info.folder).name,
            num_images={**info.num_samples},
            sha256={**info.sha256},
            content_sha256={**info.content_sha256},
        ),
        origin=Origin(command=training_command(run), commit=_commit(tags), seed=run.train.seed),
        licence=LICENCE,
    )
    return SavedModel(metadata, weights)


def training_command(run: Run) -> str:
    """Return a command that repeats a training, without defaults."""
    defaults = flatten(Run())
    arguments = [
        f"--{name}={_SOURCE_PATHS.get(name, value)}"
        for name, value in flatten(run).items()
        if value != defaults[name] and (name == _WORKERS or not name.startswith(_NOT_SHOWN))
    ]
    return shlex.join(["python", "pipelines/train.py", *arguments])


def _commit(tags: Mapping[str, str]) -> str:
    commit = tags.get(_COMMIT_TAG, "")
    return f"{commit} with uncommitted changes" if tags.get(_DIRTY_TAG) == "true" else commit
