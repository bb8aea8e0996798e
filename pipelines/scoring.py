"""What one worker does to score weights that are there already."""

from typing import Any

from cluster.execution.reporter import RayReporter
from pipelines.workers import EXIT_OUTPUTS, on_this_node, open_split, score, set_up
from ranet import RANet
from ranet.model.preprocessing import Normalize


def evaluate_worker(config: dict[str, Any]) -> None:
    """Score weights on the validation and the test images.

    Args:
        config: `run`, a Run whose paths are absolute, and `weights`, a state dict.
    """
    device = set_up(config["run"])
    with on_this_node(config["run"]) as run:
        model = RANet(run.model)
        model.load_state_dict(config["weights"])
        model.to(device)
        normalize = Normalize(run.data.mean, run.data.std).to(device)
        splits = {split: open_split(run, split, device) for split in ("val", "test")}
        RayReporter().save({}, {EXIT_OUTPUTS: score(model, splits, normalize, device)})
