"""Preparation script on a Ray cluster, from and to S3."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from ray.job_submission import JobStatus

from cluster.config import ClusterConfig
from cluster.local.processes import kill_marked
from cluster.storage.cache import Cache
from cluster.storage.s3 import ObjectStore
from pipelines.data.config import AugmentConfig, DataConfig
from pipelines.data.format.beton import open_beton
from pipelines.data.format.metadata import read_metadata
from pipelines.data.loading.staging import staged_data
from pipelines.data.preparation.prepare import prepare
from pipelines.preflight import preflight
from pipelines.run import Run
from ranet import ModelConfig, TrainConfig
from tests.support.image_files import (
    batches_of,
    folder_config,
    image_folder,
    photo_arguments,
    photo_tree,
    read_epoch,
)
from tests.support.jobs import Job
from tests.support.paths import PROJECT
from tests.support.training import user_environment

pytestmark = pytest.mark.e2e


def start(ray_folder: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "pipelines/prepare_data.py", "--data.source=imagefolder", *arguments],
        cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**user_environment(), "PYTHONPATH": str(PROJECT), "RAY_TMPDIR": ray_folder},
        start_new_session=True,
    )  # fmt: skip


def run(ray_folder: str, *arguments: str) -> tuple[int, str, str]:
    process = start(ray_folder, *arguments)
    output, errors = process.communicate(timeout=200)
    return process.returncode, output, errors


def checksums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*.beton*"))
    }


def test_script_lists_skipped_images_and_verifies_existing_files(tmp_path, ray_folder):
    root = image_folder(tmp_path / "tree")
    (root / "val" / "cat" / "bad.jpg").write_bytes(b"")
    folder = tmp_path / "prepared"
    arguments = (f"--data.source_dir={root}", f"--data.prepared_dir={folder}", "--skip-unreadable")
    status, output, errors = run(ray_folder, *arguments)
    assert status == 0, errors
    assert "1 unreadable, skipped:" in output
    assert f"{root}/val/cat/bad.jpg is not a readable image" in output
    with (folder / "val.beton").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    status, _, errors = run(ray_folder, *arguments)
    assert status == 1
    assert "val.beton is damaged: its SHA-256 is" in errors


def test_dry_run_reports_all_problems_and_writes_nothing(tmp_path, ray_folder):
    root = photo_tree(tmp_path / "tree")
    arguments = photo_arguments(root, "--dry-run")
    status, output, errors = run(ray_folder, *arguments)
    assert status == 0, errors
    assert "48 seen, 48 images, 0 skipped" in output
    (root / "val" / "cat" / "bad.jpg").write_text("text")
    problems = ("--model.num_classes=4", "--train.batch_size=500", "--data.augment.crop=pad4")
    status, output, errors = run(ray_folder, *arguments, *problems)
    assert status == 1, errors
    missing = [line for line in output.splitlines() if line.startswith("MISSING")]
    assert len(missing) == 4
    for text in ("must be 3", "only 30 training images", "pad4 needs", "bad.jpg is not a readable"):
        assert any(text in line for line in missing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]


@pytest.mark.timeout(400)
def test_preparation_after_killed_driver_and_lost_host_equals_uninterrupted_one(
    cluster, tmp_path, ray_folder, shared_data
):
    with tarfile.open(shared_data / "imagenette224-mini.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    config = DataConfig(
        source="imagefolder",
        source_dir=str(tmp_path / "imagenette224-mini"),
        prepared_dir=str(tmp_path / "unbroken"),
        class_index=str(PROJECT / "configs" / "imagenet_classes.txt"),
        image_format="jpeg",
        max_side=160,
        augment=AugmentConfig(crop="random_resized"),
    )
    prepare(config, 224)
    folder = tmp_path / "broken"
    arguments = (
        *(
            f"--data.{name}={getattr(config, name)}"
            for name in ("source_dir", "class_index", "image_format", "max_side")
        ),
        f"--data.augment.crop={config.augment.crop}",
        f"--data.prepared_dir={folder}",
    )
    process = start(ray_folder, *arguments)
    deadline = time.monotonic() + 100
    while len(list(folder.glob("shards-*/train-*.npz"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    kill_marked("RAY_TMPDIR", ray_folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("shards-*/*.npz")}
    assert not (folder / "train.beton").exists()
    script = ("python", "pipelines/prepare_data.py", "--data.source=imagefolder")
    job = Job(cluster, tmp_path, "prepare", command=(*script, *arguments))
    job.wait_until(lambda: set(folder.glob("shards-*/*.npz")) - kept.keys())
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    cluster.kill("host2")
    assert job.wait() is JobStatus.SUCCEEDED, job.output()
    assert checksums(folder) == checksums(tmp_path / "unbroken")
    assert not list(folder.glob("shards-*"))
    metadata = read_metadata(folder / "test.beton")
    assert len(metadata.class_names) == 1000
    assert metadata.samples_per_class[0] == 200
    assert np.count_nonzero(metadata.samples_per_class) == 10


def test_images_of_100_of_1000_classes_are_prepared_from_s3_to_s3(
    tmp_path, shared_data, s3, bucket, ray_folder
):
    """Use every tenth class, with two training images since validation needs one."""
    tree = f"s3://{bucket}/imagenet"
    count = 0
    with (
        tarfile.open(shared_data / "imagenet-sample-320.tar") as archive,
        ObjectStore() as store,
    ):
        for member in [each for each in archive.getmembers() if each.isfile()][::10]:
            file = archive.extractfile(member)
            assert file is not None
            content, name = file.read(), member.name.split("/")[1]
            for path in (f"train/{name}/1.JPEG", f"train/{name}/2.JPEG", f"val/{name}/1.JPEG"):
                # Bytes after the end make the files different.
                store.write(f"{tree}/{path}", content + path.encode())
            count += 1
    folder = f"s3://{bucket}/prepared"
    arguments = (
        f"--data.source_dir={tree}", f"--data.prepared_dir={folder}",
        "--data.class_index=configs/imagenet_classes.txt",
        "--data.image_format=jpeg", "--data.augment.crop=random_resized",
    )  # fmt: skip
    status, output, errors = run(ray_folder, *arguments)
    assert status == 0, errors
    assert f"{folder}: 1000 classes" in output
    with ObjectStore() as store:
        names = list(store.names(folder))
    assert names == [
        f"{split}.beton{end}" for split in ("test", "train", "val") for end in ("", ".json")
    ]
    config = DataConfig(
        source="imagefolder", source_dir=tree, prepared_dir=folder, image_format="jpeg",
        augment=AugmentConfig(crop="random_resized"),
        class_index="configs/imagenet_classes.txt",
    )  # fmt: skip
    with staged_data(config, Cache(tmp_path)) as here:
        images, labels = read_epoch(batches_of(here, "test", image_size=64, batch_size=50))
        assert images.shape == (count, 3, 64, 64)
        assert labels.tolist() == list(range(0, 1000, 10))
        metadata = json.loads((Path(here.prepared_dir) / "train.beton.json").read_text())
        assert metadata["samples_per_class"][:11] == [1, *[0] * 9, 1]
        assert len(open_beton(Path(here.prepared_dir) / "val.beton")) == count
    with ObjectStore() as store:
        store.delete(f"{folder}/val.beton.json")
        kept = store.read(f"{folder}/train.beton.json")
        assert prepare(config, 64).num_samples == {"train": count, "val": count, "test": count}
        assert store.read(f"{folder}/train.beton.json").etag == kept.etag


def test_two_drivers_write_same_files_to_s3_and_other_settings_raise_error(bucket, tmp_path):
    root = image_folder(tmp_path / "tree")
    config = folder_config(root, prepared_dir=f"s3://{bucket}/prepared")
    local = folder_config(root, prepared_dir=str(tmp_path / "local"))
    encoded, overtaken = Event(), Event()

    def serial_map(function, items):
        yield from enumerate(map(function, items))

    def map_and_wait(function, items):
        yield from serial_map(function, items)
        encoded.set()
        assert overtaken.wait(60)

    with ThreadPoolExecutor() as pool:
        slow = pool.submit(prepare, config, 32, parallel_map=map_and_wait)
        assert encoded.wait(60)
        with pytest.raises(ValueError, match=r"another process writes there now.*max_side"):
            prepare(replace(config, max_side=16), 32, parallel_map=serial_map)
        info = prepare(config, 32, parallel_map=serial_map)
        overtaken.set()  # its shards are gone
        assert slow.result() == info
    assert prepare(local, 32).sha256 == info.sha256
    with ObjectStore() as store:
        names = list(store.names(config.prepared_dir))
    assert names == [
        f"{split}.beton{end}" for split in ("test", "train", "val") for end in ("", ".json")
    ]


def test_unwritable_s3_prepared_dir_raises_error_before_preparation(bucket, tmp_path, monkeypatch):
    config = folder_config(
        image_folder(tmp_path / "tree"), prepared_dir="s3://no-such-bucket/prepared"
    )
    with pytest.raises(FileNotFoundError, match=r"s3://no-such-bucket/prepared/.*no such bucket"):
        prepare(config, 32)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run = Run(
        data=config,
        model=ModelConfig(num_classes=2),
        train=TrainConfig(batch_size=4),
        cluster=ClusterConfig(device="cpu", storage_path=str(tmp_path / "runs")),
    )
    report = preflight(run)
    assert report.missing == [
        "data.prepared_dir cannot be written: s3://no-such-bucket/prepared/writable: no such "
        "bucket; "
        "create it, or correct the URI"
    ]
    report = preflight(replace(run, data=replace(config, prepared_dir=f"s3://{bucket}/prepared")))
    assert report.can_start, report
    with ObjectStore() as store:
        assert not list(store.names(f"s3://{bucket}/prepared"))
