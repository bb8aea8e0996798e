"""Reporter for a training without a cluster."""

import logging

from ranet.protocols import Metrics, Snapshot

logger = logging.getLogger(__name__)


class LogReporter:
    """Writes the metrics to the log: for a run on one machine without a cluster."""

    def report(self, metrics: Metrics, snapshot: Snapshot | None) -> None:
        """Log one line with every metric."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        logger.info("epoch %d: %s", metrics["epoch"], text)

    def step(self, num_images: int, seconds: float, waited: float) -> None:
        """Say nothing: the loop itself logs a line now and then."""

    def wants_checkpoint(self) -> bool:
        """Want none."""
        return False

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Keep nothing."""
