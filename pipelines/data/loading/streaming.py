"""Batches decoded from a prepared file during training."""

import math
import mmap
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import TimeoutError as PoolTimeoutError
from multiprocessing.pool import AsyncResult, ThreadPool

import numpy as np
import torch
from torch import Tensor

from pipelines.data.format.beton import Beton
from pipelines.data.format.metadata import rewrite_hint
from pipelines.data.loading.decoding import batch_decoder
from pipelines.data.loading.device_copy import CopyStream, DeviceBatch, HostBatch
from pipelines.data.loading.sampling import EpochOrder, EpochSampler

GAP_BYTES = 1 << 16
"""Two images with a smaller gap between them are prefetched with one request."""
STALL_SECONDS = 120.0
"""A batch takes milliseconds; after this time the disk or network is assumed to be lost."""


@dataclass(eq=False)
class StreamingBatches:
    """Batches of one split for one worker, decoded ahead by threads.

    Each thread decodes whole batches into a ring of buffers. FFCV's own `Loader` is not used: it
    hangs when its thread fails, and leaks the thread when an epoch ends early
    (docs/decisions/003-data.md).
    """

    beton: Beton
    sampler: EpochSampler
    device: torch.device
    threads: int = 0
    """Decoding threads; 0: one per CPU that the process may use."""
    stall_seconds: float = STALL_SECONDS
    _ring: list[HostBatch] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        available = len(os.sched_getaffinity(0))
        self.threads = min(self.threads or available, available)
        self._decode_batch = batch_decoder()
        if self.sampler.is_training and self.sampler.config.shuffle == "blocks":
            mapped = self.beton.data.base
            assert isinstance(mapped, mmap.mmap)
            # Without this the kernel reads megabytes around each image that is not prefetched.
            mapped.madvise(mmap.MADV_RANDOM)

    @property
    def num_samples(self) -> int:
        """Number of images of the whole split, over all workers."""
        return len(self.beton)

    def __len__(self) -> int:
        """Return the number of batches of this worker in one epoch."""
        return len(self.sampler)

    @contextmanager
    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Open the batches of one epoch; see `ranet.protocols.Batches`."""
        order = self.sampler.epoch(epoch, first_step)
        pool = ThreadPool(self.threads)
        with self.beton.path.open("rb") as file:
            decoded = self._decoded(pool, order, file.fileno())
            try:
                yield self._on_device(decoded)
            except TimeoutError:
                pool.terminate()  # the threads hang; they are daemons, and joining would hang too
                raise
            except BaseException:
                _close(pool)
                raise
            _close(pool)

    def _on_device(
        self, decoded: Iterator[tuple[Tensor, Tensor, HostBatch]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches on the device, copied to a GPU one batch ahead."""
        if self.device.type != "cuda":
            for images, labels, _ in decoded:
                yield images, labels
            return
        stream = CopyStream(self.device)
        previous: DeviceBatch | None = None
        for images, labels, memory in decoded:
            following = stream.start(images, labels, memory)
            if previous is not None:
                yield stream.finish(previous)
            previous = following
        if previous is not None:
            yield stream.finish(previous)

    def _decoded(
        self, pool: ThreadPool, order: EpochOrder, file: int
    ) -> Iterator[tuple[Tensor, Tensor, HostBatch]]:
        """Yield images and labels, and the memory that holds the images."""
        # One buffer per thread, one that is ready, and one in use by the caller.
        ring = self._buffers(self.threads + 2)
        waiting: deque[AsyncResult[Tensor]] = deque()
        submitted = 0
        for number in range(len(order)):
            while submitted < min(len(order), number + len(ring) - 1):
                samples, boxes = order[submitted]
                if len(prefetched := order.samples_to_prefetch(submitted)):
                    pool.apply_async(_prefetch, (file, self.beton.table, prefetched))
                memory = ring[submitted % len(ring)]
                memory.wait_until_copied()
                size = (len(samples), order.image_size, order.image_size, 3)
                buffer = memory.images[: math.prod(size)].view(size)
                waiting.append(pool.apply_async(self._decode, (samples, boxes, buffer)))
                submitted += 1
            try:
                images = waiting.popleft().get(self.stall_seconds)
            except PoolTimeoutError:
                raise TimeoutError(
                    f"{self.beton.path}: no batch for {self.stall_seconds:g} seconds; "
                    "check its disk or network file system"
                ) from None
            labels = torch.from_numpy(self.beton.labels[order[number][0]])
            yield images, labels, ring[number % len(ring)]

    def _decode(self, samples: np.ndarray, boxes: np.ndarray, buffer: Tensor) -> Tensor:
        damaged = self._decode_batch(
            self.beton.data, self.beton.table, samples, boxes, buffer.numpy()
        )
        if damaged >= 0:
            raise ValueError(
                f"{self.beton.path}: image {damaged} is damaged, its JPEG cannot be decoded; "
                f"{rewrite_hint(self.beton.path)}"
            )
        return buffer.permute(0, 3, 1, 2)

    def _buffers(self, count: int) -> list[HostBatch]:
        """Return the reused ring of buffers, for batches of the largest images."""
        if not self._ring:
            is_pinned = self.device.type == "cuda"
            batch_size = self.sampler.batch_size
            num_bytes = batch_size * self.sampler.image_size**2 * 3
            # One allocation: pinned memory is rounded up to a power of two.
            images = torch.empty((count, num_bytes), dtype=torch.uint8, pin_memory=is_pinned)
            labels = torch.empty((count, batch_size), dtype=torch.int64, pin_memory=is_pinned)
            self._ring = [HostBatch(*each) for each in zip(images, labels, strict=True)]
        return self._ring


def _prefetch(file: int, table: np.ndarray, samples: np.ndarray) -> None:
    """Ask the kernel to read images, in file order, in the background."""
    starts, ends = table[samples, 0], table[samples, 0] + table[samples, 1]
    begins = np.r_[True, (starts[1:] > ends[:-1] + GAP_BYTES) | (starts[1:] < ends[:-1])]
    for start, end in zip(starts[begins], ends[np.r_[begins[1:], True]], strict=True):
        os.posix_fadvise(file, int(start), int(end - start), os.POSIX_FADV_WILLNEED)


def _close(pool: ThreadPool) -> None:
    pool.terminate()
    pool.join()
