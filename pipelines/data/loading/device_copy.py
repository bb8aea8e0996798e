"""Copies of batches to a GPU on a stream of their own."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class HostBatch:
    """Reused host memory of one batch, pinned for a GPU."""

    images: Tensor
    """Memory of the images, uint8 (bytes,)."""
    labels: Tensor
    """Memory of the labels on their way to a GPU, int64 (images,)."""
    copied: torch.cuda.Event | None = None
    """Recorded after the latest copy from this memory; None: no copy."""

    def wait_until_copied(self) -> None:
        """Wait until the memory may be overwritten."""
        if self.copied is not None:
            self.copied.synchronize()


@dataclass(frozen=True, eq=False)
class DeviceBatch:
    """Batch on a GPU whose copy may not be complete."""

    images: Tensor
    labels: Tensor
    copied: torch.cuda.Event


class CopyStream:
    """Stream that copies batches to a GPU while the GPU computes.

    The host waits neither for the copy nor for the computation.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, images: Tensor, labels: Tensor, memory: HostBatch) -> DeviceBatch:
        """Start to copy a batch, whose images are in pinned memory."""
        pinned = memory.labels[: len(labels)].copy_(labels)
        copied = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            batch = DeviceBatch(
                images.to(self._device, non_blocking=True, copy=True),
                pinned.to(self._device, non_blocking=True, copy=True),
                copied,
            )
            copied.record(self._stream)
        memory.copied = copied
        return batch

    def finish(self, batch: DeviceBatch) -> tuple[Tensor, Tensor]:
        """Let the GPU's computation wait for a copy; return images and labels."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(batch.copied)
        for tensor in (batch.images, batch.labels):
            # The allocator must not reuse the memory before the computation has read it.
            tensor.record_stream(current)
        return batch.images, batch.labels
