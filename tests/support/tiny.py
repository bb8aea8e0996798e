"""Shared parts of training tests: digits as batches, a network, a reporter."""

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ranet import ModelConfig, RANet
from ranet.protocols import Metrics, Snapshot


class Digits:
    """`Batches` of scikit-learn's digits, enlarged to 16x16 RGB, for one worker."""

    def __init__(
        self,
        first,
        last,
        batch_size,
        *,
        shuffled=False,
        rank=0,
        num_workers=1,
        seed=0,
        device: str | torch.device = "cpu",
    ) -> None:
        pixels, targets = load_digits(return_X_y=True)
        images = torch.from_numpy(pixels[first:last] * 15).to(torch.uint8).reshape(-1, 8, 8)
        images = images.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        self.images = images[:, None].repeat(1, 3, 1, 1).to(device)
        self.labels = torch.from_numpy(targets[first:last]).long().to(device)
        self.batch_size, self.shuffled, self.seed = batch_size, shuffled, seed
        self.rank, self.num_workers = rank, num_workers
        self.num_open = 0

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    def __len__(self) -> int:
        return len(self._own(0))

    def _own(self, epoch: int) -> list[Tensor]:
        """Indices of each of this worker's batches."""
        order = torch.arange(self.num_samples)
        if self.shuffled:
            generator = torch.Generator().manual_seed(self.seed * 1000 + epoch)
            order = torch.randperm(self.num_samples, generator=generator)
            order = order[: len(order) // self.batch_size * self.batch_size]
            batches = order.reshape(-1, self.batch_size)
            return list(batches.tensor_split(self.num_workers, dim=1)[self.rank])
        batches = order[self.rank :: self.num_workers].split(self.batch_size // self.num_workers)
        return [batch for batch in batches if len(batch)]

    @contextmanager
    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        self.num_open += 1
        try:
            yield ((self.images[own], self.labels[own]) for own in self._own(epoch)[first_step:])
        finally:
            self.num_open -= 1


class TwoExits(nn.Module):
    """Network of two exits for images of 16x16 px and ten classes."""

    def __init__(self, seed: int = 0, *, normed: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(8) if normed else nn.Identity()
        self.first_exit = nn.Linear(8 * 16, 10)
        self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(16) if normed else nn.Identity()
        self.second_exit = nn.Linear(16 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.first_norm(self.first(images)).relu()
        pooled = nn.functional.avg_pool2d(features, 2)
        deep = self.second_norm(self.second(features)).relu()
        return torch.stack((self.first_exit(pooled.flatten(1)), self.second_exit(deep.flatten(1))))


def small_ranet(seed: int = 0) -> RANet:
    """Make a real network with four exits for 16x16 images."""
    torch.manual_seed(seed)
    return RANet(
        ModelConfig(
            scales=(1, 2),
            growth_factors=(2, 1),
            bottleneck_factors=(2, 1),
            growth_rate=4,
            stem_channels=4,
            layers_per_block=2,
            exit_channels=16,
            image_size=16,
        )
    )


class Killed(Exception):  # noqa: N818 - it says what happened
    """Stands for the end of a process."""


class Recorder:
    """Keeps every report, and what the snapshot's weights were when it came.

    Args:
        kill_after: steps after which the training is killed, once it has made a checkpoint if
            `with_notice`.
    """

    def __init__(self, kill_after: int = 0, *, with_notice: bool = False) -> None:
        self.kill_after, self.with_notice = kill_after, with_notice
        self.num_steps = self.num_images = 0
        self.metrics: list[Metrics] = []
        self.snapshots: list[Snapshot] = []
        self.weights_then: list[dict[str, Tensor]] = []

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        self.metrics.append(metrics)
        if snapshot is not None:
            self.snapshots.append(copy.deepcopy(snapshot))
            self.weights_then.append({k: v.clone() for k, v in snapshot["model"].items()})

    def step(self, num_images: int, seconds: float, waited: float) -> None:
        assert 0 <= waited <= seconds
        self.num_images += num_images

    def wants_checkpoint(self) -> bool:
        self.num_steps += 1
        if self.num_steps != self.kill_after:
            return False
        if not self.with_notice:
            raise Killed
        return True

    def checkpoint(self, snapshot: Snapshot) -> None:
        self.snapshots.append(copy.deepcopy(snapshot))
        if self.num_steps == self.kill_after:
            raise Killed


def saved_and_loaded(snapshot: Snapshot) -> Snapshot:
    """Send a snapshot through a file."""
    file = io.BytesIO()
    torch.save(snapshot, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def normalize(images: Tensor) -> Tensor:
    """Map uint8 to about -1..1."""
    return images.float() / 128 - 1


def assert_same(first: object, second: object, at: str = "snapshot") -> None:
    """Compare nested dicts, lists and tensors exactly, except for times."""
    clock = {"train/images_per_second", "train/data_wait"}
    if isinstance(first, dict):
        assert isinstance(second, dict)
        assert first.keys() == second.keys(), at
        for key in first.keys() - clock:
            assert_same(first[key], second[key], f"{at}[{key!r}]")
    elif isinstance(first, list):
        assert isinstance(second, list)
        assert len(first) == len(second), at
        for k, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_same(one, other, f"{at}[{k}]")
    elif isinstance(first, Tensor):
        assert isinstance(second, Tensor)
        assert torch.equal(first, second), at
    else:
        assert first == second, at
