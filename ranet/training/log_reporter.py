"""Reporter for training without a cluster."""

import logging

from ranet.protocols import Metrics, Snapshot

logger = logging.getLogger(__name__)


class LogReporter:
    """Reporter that logs the metrics of every epoch and saves nothing."""

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        """Log one line with every metric."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger.info("epoch %d: %s", metrics["epoch"], text)

    def step(self, num_images: int, seconds: float, waited: float) -> None:
        """Ignore the step; the loop itself logs progress lines."""

    def wants_checkpoint(self) -> bool:
        """Return False: no checkpoint is saved within an epoch."""
        return False

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Ignore the snapshot."""
