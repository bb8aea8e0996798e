"""What is known of a trial of a sweep: the record that search, report and front share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["finished", "stopped", "failed"]
"""finished: trained to the last epoch; stopped: given up early by the scheduler; failed: see error.
"""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """One trial: what it tried, what that costs, and what came of it."""

    number: int
    """Place in the order of the draws, from 1."""
    trial_id: str
    """Tune's name of the trial."""
    run_id: str
    """Its MLflow run; empty where it ended before it had one."""
    settings: Mapping[str, Any]
    """Sampled values by dotted name."""
    state: State
    """How it ended."""
    epochs: int
    """Epochs trained, those before a restart included."""
    seconds: float
    """Time that its workers were held."""
    cost: tuple[int, ...]
    """Cumulative mult-adds of every exit."""
    parameters: int
    """Weights of the network."""
    memory: int
    """Estimated bytes of a training step on one worker."""
    values: tuple[float, ...] = ()
    """Its objectives, in the order of the sweep; empty where none was measured."""
    budgets: tuple[float, ...] = ()
    """Mean mult-adds per image at which `accuracies` were measured, rising."""
    accuracies: tuple[float, ...] = ()
    """Top-1 in percent at those budgets, on validation images that thresholds were not fitted to.
    Of a stopped trial, those after its last epoch."""
    exits: tuple[float, ...] = ()
    """Validation top-1 of every exit, in percent."""
    error: str = ""
    """What stopped a failed trial, in one sentence."""
