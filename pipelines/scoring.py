"""What one worker does to score weights that are there already."""

from typing import Any

import ray.train
import ray.train.torch
import torch

from cluster.reporter import RayReporter
from pipelines.data import open_batches
from pipelines.run import Run, configure_logging
from pipelines.worker import SCORES
from ranet import RANet
from ranet.inference.anytime import collect_scores
from ranet.model.normalize import Normalize


def score_worker(config: dict[str, Any]) -> None:
    """Score weights on the validation and the test images, in float32 as registered models run.

    Args:
        config: `run`, a Run whose paths are absolute, and `weights`, a state dict.
    """
    run: Run = config["run"]
    configure_logging()
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    assert isinstance(device, torch.device)
    torch.set_num_threads(run.cluster.cpus_per_worker)
    model = RANet(run.model)
    model.load_state_dict(config["weights"])
    model.to(device)
    normalize = Normalize(run.data.mean, run.data.std).to(device)
    scores = {}
    for split in ("val", "test"):
        batches = open_batches(
            run.data,
            split,
            image_size=run.model.image_size,
            batch_size=run.train.batch_size,
            rank=context.get_world_rank(),
            num_workers=context.get_world_size(),
            seed=run.train.seed,
            device=device,
        )
        scores[split] = collect_scores(model, batches, normalize=normalize, device=device).state()
    RayReporter().save({}, {SCORES: scores})
