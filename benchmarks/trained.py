"""Trained networks for benchmarks, from a run's config and snapshot."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines.data.config import Split, normalization
from pipelines.data.loading.loader import Worker, open_batches
from pipelines.data.preparation.prepare import prepare
from pipelines.run import Run, read_run
from ranet import RANet
from ranet.model.preprocessing import Normalize


@dataclass(frozen=True)
class TrainOutput:
    """The best weights of a run, and its prepared images."""

    run: Run
    model: RANet

    @classmethod
    def load(cls, config: Path, snapshot: Path) -> "TrainOutput":
        """Read a run's config and snapshot.pt; prepare missing images."""
        run = read_run([f"--config={config}"])
        model = RANet(run.model)
        model.load_state_dict(torch.load(snapshot, weights_only=True)["best"]["model"])
        prepare(run.data, run.model.image_size)
        return cls(run, model.eval())

    def images(self, split: Split, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Return normalised images (images, 3, height, width) and labels."""
        batches = open_batches(
            self.run.data,
            split,
            image_size=self.run.model.image_size,
            batch_size=64,
            worker=Worker(),
        )
        normalize = Normalize(*normalization(self.run.data))
        images, labels = [], []
        with batches.epoch(0) as reader:
            for batch_images, batch_labels in reader:
                images.append(normalize(batch_images))
                labels.append(batch_labels.clone())
                if limit is not None and 64 * len(images) >= limit:
                    break
        return torch.cat(images)[:limit], torch.cat(labels)[:limit]
