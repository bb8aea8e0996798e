"""A run whose prepared images lie in S3, from nothing to a registered model."""

import pytest

from cluster.objects import ObjectStore
from tests.e2e.training import client, runs, training

pytestmark = pytest.mark.e2e


def test_two_workers_train_from_one_copy_of_images_in_s3_which_the_next_run_finds(
    s3, bucket, tmp_path
):
    arguments = (
        f"--data.folder=s3://{bucket}/digits", f"--cluster.cache_folder={tmp_path / 'cache'}",
        "--cluster.num_workers=2", "--train.epochs=1",
    )  # fmt: skip
    with training(tmp_path, *arguments) as first:
        assert first.wait() == 0, first.output()
        begun_and_done = 2
        loads = first.output().count(f" loading s3://{bucket}/digits/train.beton:")
        assert loads == begun_and_done
        assert "classify an image:" in first.output()
    with ObjectStore() as store:
        assert len(list(store.names(f"s3://{bucket}/digits"))) == 6
    (copies,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(list(copies.iterdir())) == 6
    with training(tmp_path, *arguments, "--name=second") as second:
        assert second.wait() == 0, second.output()
        assert " loading s3://" not in second.output()
    assert [run.info.status for run in runs(client(tmp_path))] == ["FINISHED"] * 2
