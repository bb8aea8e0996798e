"""Copies of a training's tensors in reused host memory."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ranet.protocols import Snapshot

_LIVE = ("model", "optimizer", "ema")
"""Parts of a snapshot that the next step changes."""


class HostCopies:
    """Memory for one copy of a snapshot, pinned for a GPU.

    All tensors of a type share one buffer: pinning memory is slow, and `torch.save` writes one
    buffer much faster than thousands of tensors.
    """

    def __init__(self) -> None:
        self._memory: dict[torch.dtype, Tensor] = {}

    def copy(self, snapshot: Snapshot) -> Snapshot:
        """Return a CPU snapshot that is valid until the next call."""
        live = {key: snapshot[key] for key in _LIVE}
        tensors = list(_tensors_in(live))
        self._reserve(tensors)
        used: Counter[torch.dtype] = Counter()
        copies = []
        for tensor in tensors:
            start = used[tensor.dtype]
            used[tensor.dtype] += tensor.numel()
            memory = self._memory[tensor.dtype][start : used[tensor.dtype]]
            strides = torch.empty_like(tensor, device="meta").stride()  # dense
            copies.append(memory.as_strided(tensor.shape, strides))
            copies[-1].copy_(tensor, non_blocking=True)
        for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return snapshot | _replaced(live, iter(copies))

    def _reserve(self, tensors: list[Tensor]) -> None:
        """Allocate memory for the tensors, once."""
        sizes: Counter[torch.dtype] = Counter()
        for tensor in tensors:
            sizes[tensor.dtype] += tensor.numel()
        is_pinned = any(tensor.is_cuda for tensor in tensors)
        for dtype, size in sizes.items():
            if dtype not in self._memory or len(self._memory[dtype]) < size:
                self._memory[dtype] = torch.empty(size, dtype=dtype, pin_memory=is_pinned)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested dicts, in order."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors_in(each)
    elif isinstance(value, Tensor):
        yield value.detach()


def _replaced(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Return nested dicts with other tensors, in the order of `_tensors_in`."""
    if isinstance(value, Mapping):
        return {key: _replaced(each, tensors) for key, each in value.items()}
    return next(tensors) if isinstance(value, Tensor) else value
