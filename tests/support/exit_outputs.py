"""Exit outputs of two exits, few enough to compute by hand."""

import torch

from ranet.evaluation.exit_outputs import ExitOutputs, SplitOutputs

COSTS = (10, 30)


def make_exit_outputs(confidences: list[list[float]], correct: list[list[int]]) -> SplitOutputs:
    hits = torch.tensor(correct, dtype=torch.bool)
    scores = ExitOutputs(torch.tensor(confidences), hits, hits | hits.roll(1))
    return SplitOutputs(single=scores, ensemble=scores)


# Exit 1 is correct where its confidence is high, and only there; exit 2 is always correct.
VAL = make_exit_outputs([[0.9, 0.8, 0.3, 0.2], [0.9, 0.9, 0.9, 0.9]], [[1, 1, 0, 0], [1, 1, 1, 1]])
# On the test images exit 1 is confident once, and wrong; exit 2 is wrong on the last image.
TEST = make_exit_outputs(
    [[0.95, 0.1, 0.1, 0.1], [0.9, 0.9, 0.9, 0.9]], [[0, 1, 0, 0], [1, 1, 1, 0]]
)
