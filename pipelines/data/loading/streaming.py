"""Batches decoded from an FFCV file while training."""

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
from pipelines.data.loading.decoding import batch_decoder
from pipelines.data.loading.sampling import EpochOrder, EpochSampler

GAP_BYTES = 1 << 16
"""So near to each other two images are read in one piece with what is between them."""
STALL_SECONDS = 120.0
"""A batch takes milliseconds; after this long the disk or the network is gone."""


@dataclass(eq=False)
class StreamingBatches:
    """Batches of one split for one worker, decoded by threads a few batches ahead.

    Each thread decodes whole batches into a ring of buffers. FFCV's own `Loader` is not used: it
    waits for ever when its thread fails and leaks it when stopped early
    (docs/decisions/003-data.md).
    """

    beton: Beton
    planner: EpochSampler
    device: torch.device
    threads: int = 0
    """0: one per CPU that the process may use."""
    stall_seconds: float = STALL_SECONDS
    _ring: list[Tensor] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        available = len(os.sched_getaffinity(0))
        self.threads = min(self.threads or available, available)
        self._decode_batch = batch_decoder()
        if self.planner.is_training and self.planner.config.shuffle == "blocks":
            mapped = self.beton.data.base
            assert isinstance(mapped, mmap.mmap)
            # What was not asked for is not to be read with megabytes of what lies around it.
            mapped.madvise(mmap.MADV_RANDOM)

    @property
    def num_samples(self) -> int:
        """Images of the whole split, over all workers."""
        return len(self.beton)

    def __len__(self) -> int:
        """Batches that this worker reads in one epoch."""
        return len(self.planner)

    @contextmanager
    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Open the batches of one epoch; see `ranet.protocols.Batches`."""
        plan = self.planner.epoch(epoch, first_step)
        pool = ThreadPool(self.threads)
        with self.beton.path.open("rb") as file:
            try:
                yield self._read(pool, plan, file.fileno())
            except TimeoutError:
                pool.terminate()  # its threads hang: they are daemons, joining would hang too
                raise
            except BaseException:
                _close(pool)
                raise
            _close(pool)

    def _read(
        self, pool: ThreadPool, plan: EpochOrder, file: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        # One buffer for each thread, one that is ready, one in the reader's hands.
        ring = self._buffers(self.threads + 2, plan.image_size)
        copy_stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        waiting: deque[AsyncResult[Tensor]] = deque()
        submitted = 0
        for number in range(len(plan)):
            while submitted < min(len(plan), number + len(ring) - 1):
                samples, boxes = plan[submitted]
                if len(wanted := plan.samples_to_prefetch(submitted)):
                    pool.apply_async(_ask_disk, (file, self.beton.table, wanted))
                buffer = ring[submitted % len(ring)][: len(samples)]
                waiting.append(pool.apply_async(self._decode, (samples, boxes, buffer)))
                submitted += 1
            try:
                images = waiting.popleft().get(self.stall_seconds)
            except PoolTimeoutError:
                raise TimeoutError(
                    f"{self.beton.path}: no batch for {self.stall_seconds:g} seconds; "
                    "is its disk or network file system still there?"
                ) from None
            labels = torch.from_numpy(self.beton.labels[plan[number][0]])
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
                "copy or prepare the file anew"
            )
        return buffer.permute(0, 3, 1, 2)

    def _buffers(self, count: int, image_size: int) -> list[Tensor]:
        """The ring, for images of a size; its memory is kept: pinning it takes long."""
        if not self._ring:
            largest = self.planner.batch_size * self.planner.image_size**2 * 3
            pinned = self.device.type == "cuda"
            self._ring = [
                torch.empty(largest, dtype=torch.uint8, pin_memory=pinned) for _ in range(count)
            ]
        shape = (self.planner.batch_size, image_size, image_size, 3)
        return [memory[: math.prod(shape)].view(shape) for memory in self._ring]

    def _to_cuda(self, images: Tensor, copy_stream: torch.cuda.Stream) -> Tensor:
        """Copy beside the computation, and wait: the buffer is about to be used again."""
        with torch.cuda.stream(copy_stream):
            copied = images.to(self.device, non_blocking=True)
        copy_stream.synchronize()
        copied.record_stream(torch.cuda.current_stream(self.device))
        return copied


def _ask_disk(file: int, table: np.ndarray, samples: np.ndarray) -> None:
    """Have the system read images, given in their order in the file, without waiting for them."""
    starts, ends = table[samples, 0], table[samples, 0] + table[samples, 1]
    begins = np.r_[True, (starts[1:] > ends[:-1] + GAP_BYTES) | (starts[1:] < ends[:-1])]
    for start, end in zip(starts[begins], ends[np.r_[begins[1:], True]], strict=True):
        os.posix_fadvise(file, int(start), int(end - start), os.POSIX_FADV_WILLNEED)


def _close(pool: ThreadPool) -> None:
    pool.terminate()
    pool.join()
