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
    _ring: list[Tensor] = field(default_factory=list, init=False, repr=False)

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
            try:
                yield self._read(pool, order, file.fileno())
            except TimeoutError:
                pool.terminate()  # the threads hang; they are daemons, and joining would hang too
                raise
            except BaseException:
                _close(pool)
                raise
            _close(pool)

    def _read(
        self, pool: ThreadPool, order: EpochOrder, file: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        # One buffer per thread, one that is ready, and one in use by the caller.
        ring = self._buffers(self.threads + 2, order.image_size)
        copy_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        waiting: deque[AsyncResult[Tensor]] = deque()
        submitted = 0
        for number in range(len(order)):
            while submitted < min(len(order), number + len(ring) - 1):
                samples, boxes = order[submitted]
                if len(prefetched := order.samples_to_prefetch(submitted)):
                    pool.apply_async(_prefetch, (file, self.beton.table, prefetched))
                buffer = ring[submitted % len(ring)][: len(samples)]
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
            if copy_stream is None:
                yield images, labels
            else:
                yield self._to_cuda(images, copy_stream), labels.to(self.device)

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

    def _buffers(self, count: int, image_size: int) -> list[Tensor]:
        """Return the reused ring buffer of an image size."""
        if not self._ring:
            largest = self.sampler.batch_size * self.sampler.image_size**2 * 3
            pinned = self.device.type == "cuda"
            self._ring = [
                torch.empty(largest, dtype=torch.uint8, pin_memory=pinned) for _ in range(count)
            ]
        shape = (self.sampler.batch_size, image_size, image_size, 3)
        return [memory[: math.prod(shape)].view(shape) for memory in self._ring]

    def _to_cuda(self, images: Tensor, copy_stream: torch.cuda.Stream) -> Tensor:
        """Copy in parallel to the computation and wait for the copy."""
        with torch.cuda.stream(copy_stream):
            copied = images.to(self.device, non_blocking=True)
        copy_stream.synchronize()
        copied.record_stream(torch.cuda.current_stream(self.device))
        return copied


def _prefetch(file: int, table: np.ndarray, samples: np.ndarray) -> None:
    """Ask the kernel to read images, in file order, in the background."""
    starts, ends = table[samples, 0], table[samples, 0] + table[samples, 1]
    begins = np.r_[True, (starts[1:] > ends[:-1] + GAP_BYTES) | (starts[1:] < ends[:-1])]
    for start, end in zip(starts[begins], ends[np.r_[begins[1:], True]], strict=True):
        os.posix_fadvise(file, int(start), int(end - start), os.POSIX_FADV_WILLNEED)


def _close(pool: ThreadPool) -> None:
    pool.terminate()
    pool.join()
