"""Network to export, with what an answer needs besides the network."""

from dataclasses import dataclass

from ranet.inference.ensemble import ExitEnsemble
from ranet.model.network import RANet


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """Trained network, its thresholds, class names and preprocessing."""

    model: RANet
    """Network in evaluation mode, on the CPU."""
    class_names: tuple[str, ...]
    """Class names in label order."""
    crop_share: float
    """Side of the central square of an image file, as a share of the shorter side."""
    mean: tuple[float, ...]
    """Mean of each channel, on a scale where white is 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, on the same scale."""
    exit_ensemble: ExitEnsemble
    """Ensemble of exits that the thresholds belong to."""
    budgets: tuple[tuple[float, tuple[float, ...]], ...]
    """Budget fractions in ascending order, and the threshold of every exit for each."""
