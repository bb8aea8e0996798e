"""Collective operations of workers; the identity on a single worker."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """Rank of this worker, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Number of workers."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wrap(
    model: nn.Module, gradient_precision: Literal["float32", "bfloat16"] = "float32"
) -> nn.Module:
    """Wrap a model in DDP, which averages gradients over the workers."""
    if world_size() == 1:
        return model
    # Every worker keeps the batch norm statistics of its own images until the epoch ends; then
    # `average` makes the statistics equal.
    wrapped = DistributedDataParallel(
        model, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
    if gradient_precision == "bfloat16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


def accumulating(model: nn.Module) -> AbstractContextManager[None]:
    """Accumulate gradients of a DDP model without averaging them yet."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def gather(values: Tensor) -> list[Tensor]:
    """Return the tensors of all workers, in order of rank.

    Sizes may differ between workers; the number of dimensions must be equal.
    """
    if world_size() == 1:
        return [values]
    shape = torch.tensor(values.shape, device=values.device)
    shapes = [torch.empty_like(shape) for _ in range(world_size())]
    distributed.all_gather(shapes, shape)
    sizes = [size.tolist() for size in shapes]
    padded = values.new_zeros(max(int(size.prod()) for size in shapes))
    padded[: values.numel()] = values.flatten()
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    distributed.all_gather(parts, padded)
    return [
        part[: torch.Size(size).numel()].reshape(size)
        for part, size in zip(parts, sizes, strict=True)
    ]


def statistics(model: nn.Module) -> list[Tensor]:
    """Return the running statistics of a model's batch norms.

    Integer buffers are step counters; buffers that are not saved are constants.
    """
    saved = model.state_dict().keys()
    return [b for name, b in model.named_buffers() if name in saved and b.is_floating_point()]


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors with their mean over the workers, in place."""
    if tensors and world_size() > 1:
        fill(tensors, torch.stack(gather(joined(tensors))).mean(dim=0))


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate flattened tensors of one type."""
    return torch.cat([each.flatten() for each in tensors])


def fill(tensors: Sequence[Tensor], values: Tensor) -> None:
    """Copy values from the result of `joined` back into its tensors."""
    for tensor, part in zip(tensors, values.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.reshape(tensor.shape))
