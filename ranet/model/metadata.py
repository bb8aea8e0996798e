"""Metadata of a trained network: preprocessing, thresholds, accuracy, data and origin."""

import json
import math
from bisect import bisect_right
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from ranet.architecture import mult_adds
from ranet.checks import check_choices
from ranet.config import ExitEnsemble, ModelConfig

_Record = TypeVar("_Record")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing of an image file for the network.

    An image of the network's size is used unchanged. Of any other image the central square is
    resized: by averaging areas (PIL's BOX) where it shrinks, bilinearly where it grows.
    """

    image_size: int
    """Height and width of the network's images, in pixels."""
    crop_share: float
    """Side of the central square, as a share of the shorter side of the image."""
    mean: tuple[float, ...]
    """Mean of red, green and blue, from 0 to 1, subtracted from the pixels divided by 255."""
    std: tuple[float, ...]
    """Standard deviation of red, green and blue, the divisor after the subtraction."""


@dataclass(frozen=True)
class ExitAccuracy:
    """Anytime prediction: accuracy of one exit on all images, in percent."""

    mult_adds: int
    """Mult-adds of an image from the start to this exit."""
    val_top1: float
    val_top5: float
    test_top1: float
    test_top5: float


@dataclass(frozen=True)
class BudgetAccuracy:
    """Budgeted batch classification: thresholds and accuracy (percent) of one budget."""

    budget_fraction: float
    """Mean mult-adds per image, as a fraction of the last exit's mult-adds."""
    thresholds: tuple[float, ...]
    """Confidence thresholds by exit, fitted on the validation images; may be infinite."""
    val_top1: float
    test_top1: float
    test_mult_adds: float
    """Mean mult-adds of the test images."""
    exit_shares: tuple[float, ...]
    """Percentage of the test images that leave at each exit."""


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """Images that a network was trained and evaluated on."""

    name: str
    """Name of the data set."""
    num_images: dict[str, int]
    """Number of images of each split: train, val, test."""
    sha256: dict[str, str]
    """SHA-256 of the prepared file of each split."""
    content_sha256: dict[str, str]
    """SHA-256 of the hashes of the encoded images of each split, in order."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Training that a network comes from."""

    command: str
    """Command that repeats the training."""
    commit: str
    """Git commit of the code; empty: unknown."""
    seed: int
    """Seed of weights, image order and augmentation."""


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """Description of a trained network, stored beside its weights."""

    name: str
    """Name of the network."""
    model: ModelConfig
    """Shape of the network."""
    class_names: tuple[str, ...]
    """Class names in label order."""
    preprocessing: Preprocessing
    """Preprocessing of an image file."""
    exit_ensemble: ExitEnsemble
    """Ensemble of exits that predictions and thresholds belong to."""
    exits: tuple[ExitAccuracy, ...]
    """Cost and accuracy of every exit, first exit first."""
    curve: tuple[BudgetAccuracy, ...]
    """Thresholds and accuracy of a dense set of budgets, in ascending order."""
    data: DataRecord
    """Images of training and evaluation."""
    origin: Origin
    """Training of the weights."""
    licence: str
    """Licence of the weights and of the data."""
    notes: str = ""
    """Further information on the network, as Markdown."""

    def __post_init__(self) -> None:
        check_choices(self, "")
        num_exits = self.model.num_exits
        costs = tuple(row.mult_adds for row in self.exits)
        fractions = [row.budget_fraction for row in self.curve]
        if len(self.class_names) != self.model.num_classes:
            raise ValueError(
                f"class_names must have model.num_classes entries, {self.model.num_classes}, got "
                f"{len(self.class_names)}"
            )
        if self.preprocessing.image_size != self.model.image_size:
            raise ValueError(
                f"preprocessing.image_size must be model.image_size, {self.model.image_size}, got "
                f"{self.preprocessing.image_size}"
            )
        if costs != mult_adds(self.model):
            raise ValueError(
                f"exits must have the mult-adds of the network, {mult_adds(self.model)}, got "
                f"{costs}"
            )
        if not fractions or fractions != sorted(set(fractions)):
            raise ValueError(
                f"curve must have budget fractions in ascending order, got {fractions}"
            )
        for row in self.curve:
            if len(row.thresholds) != num_exits or any(map(math.isnan, row.thresholds)):
                raise ValueError(
                    f"curve must have one threshold for each of the {num_exits} exits, got "
                    f"{row.thresholds} at budget fraction {row.budget_fraction}"
                )

    @property
    def min_budget_fraction(self) -> float:
        """Smallest budget fraction: every image leaves at the first exit."""
        return self.exits[0].mult_adds / self.exits[-1].mult_adds

    def thresholds(self, budget_fraction: float) -> tuple[float, ...]:
        """Return the thresholds of the largest stored budget within a budget.

        Args:
            budget_fraction: mean mult-adds per image, as a fraction of the last exit's mult-adds.

        Raises:
            ValueError: the fraction is below the first exit's, above 1, or not a number.
        """
        if not self.min_budget_fraction <= budget_fraction <= 1:
            # Rounded up, so that the number in the message is accepted.
            smallest = math.ceil(self.min_budget_fraction * 1e4) / 1e4
            raise ValueError(
                f"budget_fraction must be from {smallest} (every image leaves at the first exit) "
                f"to 1 (the mult-adds of the last exit), got {budget_fraction}"
            )
        fractions = [row.budget_fraction for row in self.curve]
        return self.curve[bisect_right(fractions, budget_fraction) - 1].thresholds


def to_json(metadata: ModelMetadata) -> dict[str, Any]:
    """Convert metadata to values that JSON has; infinite thresholds become strings."""
    values = asdict(metadata)
    for row in values["curve"]:
        row["thresholds"] = [
            value if math.isfinite(value) else str(value) for value in row["thresholds"]
        ]
    # Tuples become lists, as in a file.
    return json.loads(json.dumps(values, allow_nan=False))


def from_json(values: Any) -> ModelMetadata:
    """Make metadata from the result of `to_json`.

    Raises:
        ValueError: an entry is missing, unknown, or has a wrong value.
    """
    known = _check_names(ModelMetadata, values)
    return ModelMetadata(
        **known
        | {
            "model": ModelConfig(**_check_names(ModelConfig, known["model"])),
            "class_names": tuple(known["class_names"]),
            "preprocessing": _record(Preprocessing, known["preprocessing"]),
            "exits": tuple(_record(ExitAccuracy, row) for row in known["exits"]),
            "curve": tuple(
                _record(BudgetAccuracy, row | {"thresholds": [float(x) for x in row["thresholds"]]})
                for row in known["curve"]
            ),
            "data": _record(DataRecord, known["data"]),
            "origin": _record(Origin, known["origin"]),
        }
    )


def _record(kind: type[_Record], values: Any) -> _Record:
    """Make a dataclass from an object of a JSON file."""
    known = _check_names(kind, values)
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})


def _check_names(kind: Any, values: Any) -> dict[str, Any]:
    """Check that a JSON object has the fields of a dataclass."""
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} must be an object, got {values!r:.100}")
    names = {field.name for field in fields(kind)}
    if missing := sorted(names - values.keys()):
        raise ValueError(f"{kind.__name__} has no {', '.join(missing)}")
    if unknown := sorted(values.keys() - names):
        raise ValueError(f"{kind.__name__} has no field {', '.join(unknown)}")
    return values
