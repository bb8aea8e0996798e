"""Ray Train worker function that evaluates existing weights."""

from typing import Any

from cluster.execution.reporter import RayReporter
from pipelines.workers import EXIT_OUTPUTS, collect_outputs, open_split, set_up, with_local_data
from ranet import RANet
from ranet.evaluation.forward import ForwardPass
from ranet.model.preprocessing import Normalize


def evaluate_worker(config: dict[str, Any]) -> None:
    """Collect the exit outputs of the validation and the test images.

    Args:
        config: `run`, a Run with absolute paths, and `weights`, a state dict.
    """
    device = set_up(config["run"])
    with with_local_data(config["run"]) as run:
        model = RANet(run.model)
        model.load_state_dict(config["weights"])
        model.to(device)
        normalize = Normalize(run.data.mean, run.data.std).to(device)
        splits = {split: open_split(run, split, device) for split in ("val", "test")}
        outputs = collect_outputs(ForwardPass(model, normalize), splits)
        RayReporter().save({}, {EXIT_OUTPUTS: outputs})
