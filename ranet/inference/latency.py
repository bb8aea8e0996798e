"""Latency of each exit on this machine."""

import time

import torch
from torch import Tensor

from ranet.model.network import FusedRANet, RANet


@torch.inference_mode()
def measure_latency(model: RANet | FusedRANet, batch_size: int = 1, *, rounds: int = 20) -> Tensor:
    """Measure the latency from the input to each exit, per image.

    The latencies are possible costs for `fit_thresholds`, which then meets a budget in
    milliseconds. The measurement runs the inference form on the model's device with torch's
    current number of threads, and lets all images of a batch reach every exit.

    Args:
        model: a network; a `RANet` is measured in its inference form.
        batch_size: images per batch. Use the batch size that will be served: the latency per
            image is lower in a larger batch.
        rounds: measured passes, after three warm-up passes.

    Returns:
        Median over the rounds in milliseconds per image (exits,), float64.

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
    for row in seconds:
        _synchronize(device)
        start = time.perf_counter()
        for k, _ in enumerate(network.predictions(images)):
            _synchronize(device)
            row[k] = time.perf_counter() - start
    # Each round increases from exit to exit, so the medians increase too.
    return 1000 * seconds[3:].median(dim=0).values / batch_size


def _synchronize(device: torch.device) -> None:
    """Wait until the device has finished; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
