"""The classifier behind a block."""

import torch.nn.functional as F
from torch import Tensor, nn

from ranet.architecture import ExitSpec
from ranet.model.layers import ConvNormRelu


class Exit(nn.Module):
    """Classifier on the features of one block: two strided convolutions, pooling, linear.

    Yang et al., CVPR 2020 (arXiv:2003.07326), section 3.3.
    """

    def __init__(self, plan: ExitSpec) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            ConvNormRelu(plan.in_channels, plan.hidden_channels, 3, stride=2),
            ConvNormRelu(plan.hidden_channels, plan.hidden_channels, 3, stride=2),
        )
        self.classify = nn.Linear(plan.hidden_channels, plan.num_classes)
        nn.init.zeros_(self.classify.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, channels, height, width) to logits (batch, classes)."""
        return self.classify(F.avg_pool2d(self.reduce(features), 2).flatten(1))
