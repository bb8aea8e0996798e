"""Validation of a network during training, on all workers."""

from collections.abc import Sequence

import torch

from ranet.distributed import gather
from ranet.evaluation.accuracy import exit_hits
from ranet.evaluation.forward import ForwardPass
from ranet.protocols import Batches, Metrics
from ranet.training.losses import exit_loss


@torch.inference_mode()
def evaluate(forward: ForwardPass, batches: Batches, exit_weights: Sequence[float] = ()) -> Metrics:
    """Compute loss, top-1 and top-5 of every exit over all workers.

    The loss is the weighted sum of the exits' cross-entropies. Workers communicate only at the
    end; their numbers of batches may differ and may be 0.

    Args:
        forward: forward pass of the network, which is left in evaluation mode.
        batches: batches of the split, each image once over all workers.
        exit_weights: weight of each exit's loss; empty: 1 for every exit.
    """
    forward.model.eval()
    device = forward.device
    # Row 0 for top-1, row 1 for top-5, (2, exits); 0 exits on a worker without batches.
    hits = torch.zeros((2, 0), dtype=torch.float64, device=device)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    num_images = 0
    with batches.epoch(0) as reader:
        for images, labels in reader:
            logits = forward(images)
            loss_sum += exit_loss(logits, labels, exit_weights) * len(labels)
            batch_hits = torch.stack(exit_hits(logits, labels)).sum(dim=2)
            hits = hits + batch_hits if num_images else batch_hits.double()
            num_images += len(labels)
    hit_sums = torch.stack([each for each in gather(hits) if each.numel()]).sum(dim=0)
    sums = torch.stack(gather(torch.stack((loss_sum, loss_sum.new_tensor(num_images)))))
    loss_total, num_images = sums.sum(dim=0).tolist()
    assert num_images == batches.num_samples, "every image must be evaluated exactly once"
    top1, top5 = (hit_sums * 100 / num_images).tolist()
    metrics = {"val/loss": loss_total / num_images}
    for k, (first, fifth) in enumerate(zip(top1, top5, strict=True), start=1):
        metrics |= {f"val/exit{k}/top1": first, f"val/exit{k}/top5": fifth}
    return metrics
