"""Saved model of a run: command, commit and images."""

import shlex
from dataclasses import replace

import pytest

from cluster.cli import parse_settings
from cluster.config import ClusterConfig
from pipelines.data.config import DataConfig
from pipelines.model_packaging.contents import make_saved_model, training_command
from pipelines.run import Run
from tests.support.registered import INFO, RUN, trained_network


def test_command_repeats_the_settings_without_paths_of_the_machine():
    run = replace(
        RUN,
        data=DataConfig(source="imagefolder", source_dir="/home/me/photos", prepared_dir="/ssd/x"),
        cluster=ClusterConfig(num_workers=2, storage_path="/ssd/runs"),
    )
    command = training_command(run)
    assert "/home" not in command
    assert "/ssd" not in command
    program, script, *arguments = shlex.split(command)
    assert (program, script) == ("python", "pipelines/train.py")
    assert "--data.source_dir=FOLDER" in arguments
    parsed = parse_settings(Run, arguments)
    assert (parsed.model, parsed.train, parsed.evaluation) == (run.model, run.train, run.evaluation)
    assert parsed.cluster.num_workers == run.cluster.num_workers


@pytest.mark.parametrize(
    ("tags", "commit"),
    [
        ({}, ""),
        ({"mlflow.source.git.commit": "abc", "git.dirty": "false"}, "abc"),
        (
            {"mlflow.source.git.commit": "abc", "git.dirty": "true"},
            "abc with uncommitted changes",
        ),
    ],
)
def test_commit_and_images_are_recorded(tags: dict[str, str], commit: str):
    network = trained_network()
    info = replace(INFO, folder="s3://bucket/digits-16", mean=(0.1, 0.2, 0.3))
    run = replace(RUN, data=replace(RUN.data, mean=None))
    weights = network.model.state_dict()
    metadata = make_saved_model(run, weights, network.evaluation, info, tags).metadata
    assert metadata.origin.commit == commit
    assert metadata.data.name == "digits-16"
    assert metadata.data.sha256 == INFO.sha256
    assert metadata.preprocessing.mean == (0.1, 0.2, 0.3)
    assert metadata.preprocessing.std == RUN.data.std
