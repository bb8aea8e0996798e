"""What an exit costs in time, on the machine at hand."""

import time

import torch
from torch import Tensor

from ranet.model.network import FusedRANet, RANet


@torch.inference_mode()
def measure_latency(model: RANet | FusedRANet, batch_size: int = 1, *, rounds: int = 20) -> Tensor:
    """Measure the milliseconds per image from the input to each exit: (exits,), float64.

    They can be the costs of `fit_thresholds`, which then meets a budget in milliseconds. It is
    the time of the inference form where the model is, with the threads that torch has now, when
    all images of a batch reach the exit; medians over the rounds.

    Args:
        model: a network; of a `RANet` the inference form is timed.
        batch_size: images that run together. Take the size that will be served: per image, a
            batch is faster than a single one.
        rounds: passes to time, after three to warm up.

    Raises:
        ValueError: `batch_size` or `rounds` is below 1.
    """
    for name, value in (("batch_size", batch_size), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    network = model.optimized() if isinstance(model, RANet) else model
    device = next(network.buffers()).device
    size = network.config.image_size
    images = torch.rand(batch_size, 3, size, size, device=device)
    seconds = torch.zeros(rounds + 3, network.config.num_exits, dtype=torch.float64)
    for passed in seconds:
        _wait_for(device)
        start = time.perf_counter()
        for k, _ in enumerate(network.predictions(images)):
            _wait_for(device)
            passed[k] = time.perf_counter() - start
    # The median rises as every round does.
    return 1000 * seconds[3:].median(dim=0).values / batch_size


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
