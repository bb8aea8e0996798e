"""Plain DDP training loop for torchrun, the baseline of benchmarks/orchestration.py.

The same network, images, batches, optimizer and DDP options. After each epoch the validation images
are scored; there are no checkpoints, no metrics but these, no check of the loss.
"""

import json
import time

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.data.config import normalization
from pipelines.data.loading.loader import Worker, open_batches
from pipelines.run import read_run
from ranet import RANet
from ranet.model.preprocessing import Normalize
from ranet.protocols import Batches


def main() -> None:
    """Train, and print the end and step time of each epoch."""
    run = read_run()
    distributed.init_process_group("gloo")
    rank, num_workers = distributed.get_rank(), distributed.get_world_size()
    torch.set_num_threads(run.cluster.cpus_per_worker)
    torch.manual_seed(run.train.seed)
    model = RANet(run.model).to(memory_format=torch.channels_last)
    wrapped = model
    if num_workers > 1:
        wrapped = DistributedDataParallel(
            model, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
    optim = run.train.optim
    optimizer = torch.optim.SGD(
        model.parameters(), optim.lr, optim.momentum,
        weight_decay=optim.weight_decay, nesterov=optim.nesterov,
    )  # fmt: skip
    normalize = Normalize(*normalization(run.data))
    train, val = (
        open_batches(
            run.data, split, image_size=run.model.image_size, batch_size=run.train.batch_size,
            worker=Worker(rank=rank, num_workers=num_workers, seed=run.train.seed),
        )
        for split in ("train", "val")
    )  # fmt: skip
    for epoch in range(run.train.epochs):
        began = time.time()
        model.train()
        with train.epoch(epoch) as batches:
            for images, labels in batches:
                logits = wrapped(normalize(images.contiguous(memory_format=torch.channels_last)))
                losses = [
                    F.cross_entropy(each, labels, label_smoothing=run.train.loss.label_smoothing)
                    for each in logits
                ]
                optimizer.zero_grad()
                torch.stack(losses).sum().backward()
                optimizer.step()
        in_steps = time.time() - began
        top1 = score(model, val, normalize)
        if rank == 0:
            told = {"epoch": epoch + 1, "time": time.time(), "in_steps": in_steps, "top1": top1}
            print(json.dumps(told), flush=True)
    distributed.destroy_process_group()


@torch.inference_mode()
def score(model: nn.Module, batches: Batches, normalize: nn.Module) -> list[float]:
    """Top-1 of every exit in percent, over the images of all workers."""
    model.eval()
    hits = torch.zeros(())
    with batches.epoch(0) as reader:
        for images, labels in reader:
            logits = model(normalize(images.contiguous(memory_format=torch.channels_last)))
            hits = hits + (logits.argmax(dim=2) == labels).sum(dim=1)
    distributed.all_reduce(hits)
    return (hits * 100 / batches.num_samples).tolist()


if __name__ == "__main__":
    main()
