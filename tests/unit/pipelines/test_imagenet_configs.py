"""ImageNet configs: a few training steps of each on real photographs."""

import math
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.data.config import normalization
from pipelines.data.loading.loader import Worker, open_batches
from pipelines.data.preparation.prepare import prepare
from pipelines.run import read_run
from ranet import PRESETS, RANet
from ranet.model.preprocessing import Normalize
from ranet.training.loop import fit
from ranet.training.schedule import epoch_sizes, learning_rate
from ranet.training.state import TrainState
from tests.support.paths import PROJECT
from tests.support.tiny import Recorder

CONFIGS = PROJECT / "configs"
IMAGENETTE = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""ImageNet labels of the ten classes of Imagenette."""


@pytest.fixture(scope="module")
def photographs(shared_data, tmp_path_factory) -> Path:
    """Four training images and one test image of ten ImageNet classes."""
    folder = tmp_path_factory.mktemp("photographs")
    counts: dict[tuple[str, ...], int] = {}
    with tarfile.open(shared_data / "imagenette224-mini.tar") as archive:
        for member in archive:
            parts = Path(member.name).parts
            if not member.isfile() or len(parts) != 4:
                continue
            kind = parts[1:3]
            counts[kind] = counts.get(kind, 0) + 1
            if counts[kind] <= (4 if parts[1] == "train" else 1):
                archive.extract(member, folder, filter="data")
    return folder / "imagenette224-mini"


def test_paper_learning_rate_decays_after_30_and_60_epochs():
    config = read_run(["--config", str(CONFIGS / "imagenet_paper.yaml")]).train
    rates = [learning_rate(config, 10 * epoch, 10) for epoch in (0, 29, 30, 59, 60, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("name", ["imagenet", "imagenet_paper"])
def test_uncommented_lines_configure_the_config_for_a_cluster(name, tmp_path):
    text = (CONFIGS / f"{name}.yaml").read_text().replace("  prepared_dir: data/imagenet #", "#")
    config = tmp_path / "config.yaml"
    config.write_text(text.replace("  # ", "  ").replace("BUCKET", "team"))
    run = read_run(["--config", str(config)])
    assert run.data.prepared_dir == "s3://team/imagenet-500"
    assert run.cluster.storage_path == "s3://team/runs"
    assert run.cluster.device == "gpu"


@pytest.mark.parametrize("name", ["imagenet", "imagenet_paper"])
def test_imagenet_config_trains_on_photographs(name, photographs, tmp_path):
    run = read_run(["--config", str(CONFIGS / f"{name}.yaml")])
    assert run.model == PRESETS["imagenet_paper"]
    assert run.model.num_classes == 1000
    sizes = run.train.progressive_sizes or (224,)
    # A narrow network, three steps per epoch, and one epoch per image size.
    model = replace(run.model, stem_channels=16, growth_rate=8, layers_per_block=2)
    data = replace(
        run.data,
        source_dir=str(photographs),
        prepared_dir=str(tmp_path / "prepared"),
        validation_share=0.25,
    )
    config = replace(
        run.train,
        epochs=len(sizes),
        batch_size=8,
        micro_batch_size=min(run.train.micro_batch_size, 4),
        optim=replace(run.train.optim, warmup_epochs=min(run.train.optim.warmup_epochs, 0.5)),
    )
    counts = prepare(data, model.image_size).samples_per_class["train"]
    assert len(counts) == 1000
    assert tuple(np.flatnonzero(counts)) == IMAGENETTE
    train, val = (
        open_batches(
            data, split, image_size=224, batch_size=8, worker=Worker(),
            epoch_sizes=epoch_sizes(config),
        )
        for split in ("train", "val")
    )  # fmt: skip
    trained_on: Counter[tuple[int, ...]] = Counter()
    normalize = Normalize(*normalization(data))

    def prepare_images(images):
        if torch.is_grad_enabled():  # not validation
            trained_on[tuple(images.shape[2:])] += len(images)
        return normalize(images)

    snapshot = fit(TrainState(config, RANet(model), prepare_images), train, val, Recorder())
    assert trained_on == {(size, size): 3 * 8 for size in sizes}
    assert 224 in sizes
    assert snapshot["epoch"] == len(sizes)
    assert all(
        math.isfinite(value) for metrics in snapshot["history"] for value in metrics.values()
    )
    assert (snapshot["ema"] is not None) == (config.ema.decay > 0)
