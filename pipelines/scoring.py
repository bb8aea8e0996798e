"""What one worker does to score weights that are there already."""

from typing import Any

import torch
from torch import Tensor

from cluster.reporter import RayReporter
from pipelines.run import Run
from pipelines.worker import SCORES, on_this_node, open_split, set_up
from ranet import RANet
from ranet.inference.anytime import collect_answers
from ranet.model.normalize import Normalize


def score_worker(config: dict[str, Any]) -> None:
    """Score weights on the validation and the test images, in float32 as registered models run.

    Args:
        config: `run`, a Run whose paths are absolute, and `weights`, a state dict.
    """
    device = set_up(config["run"])
    with on_this_node(config["run"]) as run:
        RayReporter().save({}, {SCORES: _score(run, config["weights"], device)})


def _score(run: Run, weights: dict[str, Tensor], device: torch.device) -> dict[str, Any]:
    model = RANet(run.model)
    model.load_state_dict(weights)
    model.to(device)
    normalize = Normalize(run.data.mean, run.data.std).to(device)
    scores = {}
    for split in ("val", "test"):
        batches = open_split(run, split, device)
        answers = collect_answers(model, batches, normalize=normalize, device=device)
        scores[split] = answers.state()
    return scores
