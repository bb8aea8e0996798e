"""Run with prepared images in S3, up to the registered model."""

from itertools import chain
from pathlib import Path

import pytest

from cluster.storage.s3 import ObjectStore
from pipelines.data.preparation.prepare import prepare
from pipelines.run import read_run
from tests.support.planted_secrets import files, findings, objects
from tests.support.s3 import environment_of_role
from tests.support.training import client, runs, training

pytestmark = pytest.mark.e2e


SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": "mlflow-Zq91-planted",
    "PGPASSWORD": "postgres-Zq92-planted",
    "HTTPS_PROXY": "http://ada:proxy-Zq93-planted@127.0.0.1:9",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN": "container-Zq94-planted",
    "HF_TOKEN": "hub-Zq95-planted",
}
"""What a user's shell may hold, whether a run needs it or not."""
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""What it needs: credentials of an hour, with which images and checkpoints are read and written."""


def test_two_workers_share_one_copy_of_s3_images_and_the_next_run_reuses_it(
    s3, bucket, tmp_path, tmp_path_factory, monkeypatch
):
    arguments = (
        f"--data.prepared_dir=s3://{bucket}/digits", f"--cluster.cache_dir={tmp_path / 'cache'}",
        f"--cluster.storage_path=s3://{bucket}/runs", "--cluster.num_workers=2", "--train.epochs=1",
    )  # fmt: skip
    credentials = environment_of_role(s3)
    with training(tmp_path, *arguments, **SECRETS, **credentials) as first:
        assert first.wait() == 0, first.output()
        begun_and_done = 2
        loads = first.output().count(f" downloading s3://{bucket}/digits/train.beton:")
        assert loads <= begun_and_done  # the other worker, which says nothing, may have loaded
        assert "classify an image:" in first.output()
        planted = ["-planted", *(credentials[name] for name in KEYS[1:])]
        places = chain(files(tmp_path, Path(first.ray_folder)), objects(s3.client(), bucket))
        looked_for = (
            "log.txt", "mlflow.db", "MLmodel", "worker-", "s3: digits/", "s3: runs/", "snapshot.pt",
        )  # fmt: skip
        assert not findings(planted, places, looked_for)
    with ObjectStore() as store:
        assert len(list(store.names(f"s3://{bucket}/digits"))) == 6
    (copies,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(list(copies.iterdir())) == 6
    assert [run.info.status for run in runs(client(tmp_path))] == ["FINISHED"]
    file = tmp_path_factory.mktemp("aws") / "credentials"
    other = environment_of_role(s3)
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    file.write_text("\n".join(["[default]", *(f"{name.lower()} = {other[name]}" for name in KEYS)]))
    environment = {"AWS_SHARED_CREDENTIALS_FILE": str(file)}
    with training(tmp_path, *arguments, "--name=second", **environment) as second:
        second.wait_until(lambda: "validation top-1" in second.output())
        assert " downloading s3://" not in second.output()
        places = files(tmp_path, Path(second.ray_folder))
        assert not findings([other[name] for name in KEYS[1:]], places, ("log.txt", "worker-"))


def test_damaged_object_ends_a_run_with_its_uri_and_leaves_no_copy(bucket, tmp_path):
    folder = f"s3://{bucket}/digits"
    run = read_run(["--data.source=digits", f"--data.prepared_dir={folder}"])
    prepare(run.data, 16)
    with ObjectStore() as store:
        content = bytearray(store.read(f"{folder}/train.beton").data)
        content[-5000] ^= 1
        store.write(f"{folder}/train.beton", bytes(content))
    cache = tmp_path / "cache"
    with training(
        tmp_path, f"--data.prepared_dir={folder}", f"--cluster.cache_dir={cache}"
    ) as process:
        assert process.wait() == 1, process.output()
    last = process.output().splitlines()[-1]
    assert last.startswith(
        f"error: worker 0 failed: {folder}/train.beton is damaged: its SHA-256 is "
    )
    assert [run.info.status for run in runs(client(tmp_path))] == ["FAILED"]
    assert not list(cache.glob("*/train.beton"))
    assert not list(cache.glob("*/*.part"))
