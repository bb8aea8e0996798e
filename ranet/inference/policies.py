"""Exit policies: confidence scores that decide at which exit an image leaves."""

from typing import Protocol

from torch import Tensor


class ExitPolicy(Protocol):
    """Confidence score of an exit's prediction."""

    @property
    def name(self) -> str:
        """Name of the policy in settings and reports."""
        ...

    def confidence(self, logits: Tensor) -> Tensor:
        """Compute the confidence of each exit in its prediction.

        Args:
            logits: (exits, batch, classes).

        Returns:
            Confidences (exits, batch); higher means more confident.
        """
        ...


class TopProbability:
    """Highest softmax probability, as in the paper (arXiv:2003.07326)."""

    name = "top_probability"

    def confidence(self, logits: Tensor) -> Tensor:
        """Compute the highest softmax probability (exits, batch) of logits."""
        return logits.softmax(dim=-1).amax(dim=-1)


TOP_PROBABILITY = TopProbability()
"""Default policy of the cascade and of exit outputs."""
