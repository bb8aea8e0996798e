"""What one worker does to score weights that are there already."""

from typing import Any

from cluster.reporter import RayReporter
from pipelines.run import Run
from pipelines.worker import SCORES, open_split, set_up
from ranet import RANet
from ranet.inference.anytime import collect_scores
from ranet.model.normalize import Normalize


def score_worker(config: dict[str, Any]) -> None:
    """Score weights on the validation and the test images, in float32 as registered models run.

    Args:
        config: `run`, a Run whose paths are absolute, and `weights`, a state dict.
    """
    run: Run = config["run"]
    device = set_up(run)
    model = RANet(run.model)
    model.load_state_dict(config["weights"])
    model.to(device)
    normalize = Normalize(run.data.mean, run.data.std).to(device)
    scores = {}
    for split in ("val", "test"):
        batches = open_split(run, split, device)
        scores[split] = collect_scores(model, batches, normalize=normalize, device=device).state()
    RayReporter().save({}, {SCORES: scores})
