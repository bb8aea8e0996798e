"""Exit: the classifier on the output of a block."""

import torch.nn.functional as F
from torch import Tensor, nn

from ranet.architecture import ExitSpec
from ranet.model.layers import ConvNormRelu


class Exit(nn.Module):
    """Classifier on a block's features: strided convolutions, pooling, linear layer.

    Yang et al., CVPR 2020 (arXiv:2003.07326), section 3.3.
    """

    def __init__(self, spec: ExitSpec) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            ConvNormRelu(spec.in_channels, spec.hidden_channels, 3, stride=2),
            ConvNormRelu(spec.hidden_channels, spec.hidden_channels, 3, stride=2),
        )
        self.classify = nn.Linear(spec.hidden_channels, spec.num_classes)
        nn.init.zeros_(self.classify.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, channels, height, width) to logits (batch, classes)."""
        return self.classify(F.avg_pool2d(self.reduce(features), 2).flatten(1))
