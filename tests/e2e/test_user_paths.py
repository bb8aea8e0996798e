"""Relative paths of a user, and corrected commands."""

import numpy as np
import pytest
from PIL import Image

from tests.support.training import client, runs, training

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

ARGUMENTS = (
    "--data.source=imagefolder", "--data.source_dir=tree", "--data.prepared_dir=prepared",
    "--data.loader=ffcv", "--data.augment.crop=random_resized", "--model.num_classes=3",
    "--train.batch_size=8", "--train.epochs=1", "--cluster.storage_path=runs",
)  # fmt: skip


def make_tree(folder) -> None:
    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for name in ("cat", "dog", "owl"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number:03}.jpg")


def test_relative_paths_serve_training_and_evaluation_after_a_corrected_command(tmp_path):
    make_tree(tmp_path / "tree")
    # The loss is infinite at once, so the first attempt reports nothing.
    with training(tmp_path, *ARGUMENTS, "--train.optim.lr=1e30") as wrong:
        assert wrong.wait() == 1, wrong.output()
    with training(tmp_path, *ARGUMENTS) as trained:
        assert trained.wait() == 0, trained.output()
    assert "settings have changed" not in trained.output()
    assert list((tmp_path / "runs").glob("small-2-*/checkpoint_*"))
    with training(tmp_path, "models:/small/1", *ARGUMENTS, script="evaluate.py") as evaluated:
        assert evaluated.wait() == 0, evaluated.output()
    states = sorted(run.info.status for run in runs(client(tmp_path)))
    assert states == ["FAILED", "FINISHED", "FINISHED"]
