"""Pre-flight check: cost estimate and missing requirements."""

import io
import os
import re

import pytest
import torch
import yaml

from cluster.cli import parse_settings
from cluster.provisioning.preconditions import PRECONDITIONS
from pipelines.data.preparation.prepare import prepare
from pipelines.preflight import RATES, checkpoint_bytes, preflight, stored_rate
from pipelines.run import Run
from pipelines.start import track
from ranet import RANet, mult_adds
from ranet.model.preprocessing import Normalize
from ranet.training.state import TrainState
from tests.unit.test_project import ROOT

DIGITS = "1,252 train, 276 val, 269 test"


@pytest.fixture
def at_home(monkeypatch, tmp_path):
    """The project's folder, without environment variables of a cluster or server."""
    monkeypatch.chdir(ROOT)
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def read(config, tmp_path, *arguments):
    settings = [f"--cluster.storage_path={tmp_path}/runs", f"--data.prepared_dir={tmp_path}/images"]
    return parse_settings(
        Run, ["--config", str(ROOT / "configs" / f"{config}.yaml"), *settings, *arguments]
    )


def test_run_on_this_machine_is_estimated_with_its_measured_rate(at_home, tmp_path):
    run = read("digits", tmp_path, "--cluster.device=cpu")
    prepare(run.data, run.model.image_size)
    report = preflight(run)
    assert report.can_start
    lines = dict(report.lines)
    assert lines["network"].startswith("2.55 M parameters, 6 exits, 8.32 to 58.61 M mult-adds")
    assert lines["images"] == DIGITS
    assert lines["to stage"] == "none: read in place"
    assert lines["steps"].startswith("10 epochs of 19, 190 in total; 12,160 training images")
    assert lines["images/s"].startswith("140 with 2 workers, 70 each")
    assert lines["time"].startswith("0.02 h")
    assert "GPU-hours" not in lines
    assert not (tmp_path / "mlflow.db").exists()


def test_run_on_rented_gpus_has_gpu_hours_and_unknown_rates_are_named(at_home, tmp_path):
    run = read("digits", tmp_path, "--cluster.device=gpu", "--cluster.num_workers=[2,8]",
               "--train.precision=bfloat16")  # fmt: skip
    prepare(run.data, run.model.image_size)
    report = preflight(run)
    lines = dict(report.lines)
    assert report.can_start
    assert lines["to rent"] == "g6.12xlarge (spot), by ray_cluster.yaml"
    assert lines["images/s"].startswith("unknown: throughput.yaml has no rate of this network")
    assert lines["time"].startswith("at 100 images/s per worker: 0.00 h")
    assert lines["GPU-hours"] == (
        "at 100 images/s per worker: 0.03 on 8 workers; 2 machines and the head, each 0.00 h"
    )
    checks = [text for name, text in report.lines if name == "check first"]
    assert checks == [str(each) for each in PRECONDITIONS]
    assert not re.search(r"\$\d", str(report))  # no prices: they have no dated source here


def test_all_missing_requirements_are_reported_at_once(at_home, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "file").touch()
    run = read("imagenet", tmp_path, "--cluster.device=gpu", "--cluster.num_workers=13",
               f"--cluster.storage_path={tmp_path}/file/runs",
               "--evaluation.budget_fractions=[0.01]")  # fmt: skip
    report = preflight(run)
    assert not report.can_start
    for start in (
        "evaluation.budget_fractions",
        "MLflow at",
        "cluster.storage_path is",
        "cluster.num_workers requests",
    ):
        assert any(sentence.startswith(start) for sentence in report.missing), report
    assert any("run pipelines/prepare_data.py" in sentence for sentence in report.missing)
    lines = dict(report.lines)
    assert lines["images"].endswith("; 1,255,544 train, 25,623 val, 50,000 test expected")
    assert lines["steps"].startswith(
        "100 epochs of 1,226, 122,600 in total; 125,542,400 training images"
    )
    assert lines["checkpoints"].startswith("2.39 GB each, 2 kept; 501 in total, 1.20 TB to ")
    assert str(report).endswith("\ncannot start")
    assert not list(tmp_path.glob("images/*"))


@pytest.mark.parametrize(
    ("num_classes", "images", "time"),
    [
        (1000, "; 1,255,544 train, 25,623 val, 50,000 test expected",
         "at 100 images/s per worker: 43.59 h"),
        (100, "which was not checked; their number is unknown", ""),
    ],
)  # fmt: skip
def test_unprepared_imagenet_is_assumed_to_be_complete(
    at_home, tmp_path, num_classes, images, time
):
    run = read("imagenet", tmp_path, "--cluster.device=gpu", f"--data.source_dir={tmp_path}/tree",
               f"--model.num_classes={num_classes}")  # fmt: skip
    report = preflight(run)
    assert report.can_start, report
    lines = dict(report.lines)
    assert lines["images"].endswith(images)
    assert "rented machines" in lines["images"]
    assert lines.get("time", "").startswith(time)
    assert ("GPU-hours" in lines) == bool(time)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--data.source_dir={folder}/nowhere"],
            "data.source_dir is {folder}/nowhere: no such folder",
        ),
        (
            ["--data.source_dir={folder}/tree"],
            "data.source_dir must contain train and val: {folder}/tree/val",
        ),
        (["--data.source_dir={folder}/tree", "--data.source=parquet", "--data.class_index="],
         "must hold exactly one *-train."),
    ],
)  # fmt: skip
def test_missing_source_files_prevent_a_start(at_home, tmp_path, arguments, sentence):
    (tmp_path / "tree" / "train").mkdir(parents=True)
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    report = preflight(read("imagenet", tmp_path, "--cluster.device=cpu", *arguments))
    [sentence] = report.missing
    assert sentence.format(folder=tmp_path) in sentence


def test_unprepared_digits_are_counted(at_home, tmp_path):
    run = read("digits", tmp_path, "--cluster.device=cpu", "--cluster.num_workers=64")
    first = preflight(run)
    assert first.can_start, first
    images = dict(first.lines)["images"]
    assert images == f"not prepared yet: the run prepares them first; {DIGITS} expected"
    prepare(run.data, run.model.image_size)
    second = preflight(run)
    assert dict(second.lines)["images"] == DIGITS
    for line in ("steps", "time", "checkpoints", "to stage"):
        assert dict(first.lines)[line] == dict(second.lines)[line]
    cores = os.cpu_count()
    assert dict(first.lines)["cluster"] == (
        f"this machine has {cores} CPUs and 0 GPUs: capacity for {cores} of {cores} to {cores} "
        f"workers; this machine has {cores} CPUs: {cores} workers of 1 CPUs instead of "
        "cluster.num_workers = 64 of cluster.cpus_per_worker = 1"
    )


def test_download_is_reported_and_its_images_are_counted(at_home, tmp_path):
    report = preflight(
        read("cifar10", tmp_path, "--cluster.device=cpu", f"--data.source_dir={tmp_path}")
    )
    assert report.can_start, report
    assert dict(report.lines)["images"] == (
        "not prepared yet: the run prepares them first, downloading them if missing in "
        f"{tmp_path}; "
        "45,000 train, 5,000 val, 10,000 test expected"
    )


def test_unfinished_run_with_other_settings_cannot_start(at_home, tmp_path):
    run = read("digits", tmp_path)
    with pytest.raises(KeyboardInterrupt), track(run) as record:  # noqa: PT012
        record.log_history([{"epoch": 1.0}])
        raise KeyboardInterrupt
    assert preflight(run).can_start
    report = preflight(read("digits", tmp_path, "--train.epochs=3"))
    [sentence] = report.missing
    assert "is unfinished and its settings have changed: train.epochs: 10 -> 3" in sentence
    assert preflight(read("digits", tmp_path, "--train.epochs=3"), new_attempt=True).can_start


@pytest.mark.parametrize(("checkpoint_steps", "number"), [(0, 11), (8, 31), (95, 3), (60, 4)])
def test_number_of_checkpoints_is_reported(at_home, tmp_path, checkpoint_steps, number):
    # 10 epochs of 19 steps; the last epoch always has one, and one more has the scores.
    run = read("digits", tmp_path, f"--train.checkpoint_every_steps={checkpoint_steps}")
    prepare(run.data, run.model.image_size)
    report = dict(preflight(run).lines)["checkpoints"]
    assert f" kept; {number} in total, " in report


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_checkpoint_has_the_estimated_size(ema_decay, tmp_path):
    run = read("digits", tmp_path, f"--train.ema.decay={ema_decay}")
    model = RANet(run.model)
    training = TrainState(run.train, model, Normalize((0.5,) * 3, (0.5,) * 3))
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    training.optimizer.step()
    training.end_epoch({f"val/exit{k + 1}/top1": 1.0 for k in range(run.model.num_exits)})
    file = io.BytesIO()
    torch.save(training.snapshot(), file)
    assert file.tell() == pytest.approx(checkpoint_bytes(run.train, model), rel=0.03)


def test_stored_rates_match_current_configs():
    for entry in yaml.safe_load(RATES.read_text()):
        path = ROOT / "configs" / f"{entry['config']}.yaml"
        run = parse_settings(Run, ["--config", str(path)])
        cost = mult_adds(run.model)[-1]
        rate = stored_rate(run.train, cost, entry["device"], entry.get("cores", 0))
        assert rate == entry["images_per_second"]
        assert stored_rate(run.train, cost, "H100", 8) != rate
