"""Evaluation on a folder of images with the network's thresholds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.data.loading.image_files import read_image
from pipelines.data.sources.scan import folders_by_class, scan_folder
from pipelines.evaluation.budgets import Evaluation, check_budgets
from ranet import RANet, mult_adds
from ranet.evaluation.exit_outputs import anytime_accuracy, collect_exit_outputs
from ranet.evaluation.forward import ForwardPass
from ranet.inference.thresholds import score_budget
from ranet.model.metadata import Preprocessing
from ranet.model.preprocessing import Normalize
from ranet.model.saved import SavedModel

_BATCH_IMAGES = 256


@dataclass(frozen=True, eq=False)
class FileBatches:
    """`Batches` of image files, read one batch after the other."""

    files: list[str]
    labels: list[int]
    preprocessing: Preprocessing
    max_pixels: int
    device: torch.device

    @property
    def num_samples(self) -> int:
        """Number of images."""
        return len(self.files)

    def __len__(self) -> int:
        return -(-len(self.files) // _BATCH_IMAGES)

    @contextmanager
    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Open the batches; every epoch is the same."""
        yield (self._read(step) for step in range(first_step, len(self)))

    def _read(self, step: int) -> tuple[Tensor, Tensor]:
        part = slice(step * _BATCH_IMAGES, (step + 1) * _BATCH_IMAGES)
        images = [
            read_image(file, self.preprocessing, self.max_pixels) for file in self.files[part]
        ]
        pixels = torch.from_numpy(np.stack(images))
        return pixels.to(self.device), torch.tensor(self.labels[part], device=self.device)


def evaluate_folder(
    saved: SavedModel, folder: Path, budget_fractions: tuple[float, ...], max_pixels: int
) -> Evaluation:
    """Evaluate a network on test images that it was not made for.

    The thresholds are those of the network, so the mean cost may differ from the budget.

    Args:
        saved: trained network.
        folder: folder of class folders, named like classes of the network; a subset is sufficient.
        budget_fractions: fractions of the last exit's mult-adds to report.
        max_pixels: max number of pixels of an image, compared before it is decoded.

    Raises:
        ValueError: a class folder is no class of the network, or an image cannot be read.
    """
    metadata = saved.metadata
    costs = mult_adds(metadata.model)
    check_budgets(costs, budget_fractions)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files, labels = _labelled_files(folder, metadata.class_names)
    batches = FileBatches(files, labels, metadata.preprocessing, max_pixels, device)
    normalize = Normalize(metadata.preprocessing.mean, metadata.preprocessing.std).to(device)
    network = RANet.from_saved(saved).to(device).optimized()
    outputs = collect_exit_outputs(ForwardPass(network, normalize), batches)
    scored = outputs.of(metadata.exit_ensemble)
    accuracies = torch.stack(anytime_accuracy(scored), dim=1).tolist()
    exits = tuple(
        replace(row, test_top1=top1, test_top5=top5)
        for row, (top1, top5) in zip(metadata.exits, accuracies, strict=True)
    )
    curve = []
    for row in metadata.curve:
        found = score_budget(
            scored.confidences, scored.correct, costs, torch.tensor(row.thresholds)
        )
        shares = tuple(100 * share for share in found.shares)
        curve.append(
            replace(row, test_top1=found.top1, test_mult_adds=found.mean_cost, exit_shares=shares)
        )
    wanted = {round(fraction, 2) for fraction in budget_fractions}
    reported = tuple(row for row in curve if row.budget_fraction in wanted)
    return Evaluation(exits, tuple(curve), reported, metadata.exit_ensemble)


def _labelled_files(folder: Path, class_names: tuple[str, ...]) -> tuple[list[str], list[int]]:
    """Return the paths of all images, and their labels in the network."""
    scan = scan_folder(str(folder))
    folders = folders_by_class(scan)
    if unknown := sorted(folders.keys() - set(class_names)):
        raise ValueError(
            f"{folder} has class folders that are no classes of the network: "
            f"{', '.join(unknown[:5])}; its classes are {', '.join(class_names[:20])}"
        )
    pairs = [
        (f"{folder}/{name}/{image.path}", class_names.index(class_name))
        for class_name, name in folders.items()
        for image in scan.classes[name]
    ]
    if not pairs or scan.unreadable:
        reason = "; ".join(scan.unreadable[:5]) or "there are no images in class folders"
        raise ValueError(f"{folder} cannot be evaluated: {reason}")
    files, labels = zip(*pairs, strict=True)
    return list(files), list(labels)
