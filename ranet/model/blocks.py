"""Dense blocks and fusion blocks, arranged to read each channel rarely.

A dense layer reads all channels before it: x_j = cat(x_{j-1}, unit_j(x_{j-1})). Computed in this
form, each layer copies and reads all earlier channels again. The blocks here compute the same
function with fewer reads, which is possible because batch norm acts per channel:

* one wide 1x1 convolution, shared by all layers, reads the channels that are available before the
  first layer (input and lateral channels); each layer then adds only the contribution of the new
  channels of its predecessors;
* all lateral units of a fusion block read prefixes of one tensor, so one 1x1 convolution with a
  staircase of zeros, one grouped 3x3 convolution and one resize serve all layers;
* channels are concatenated once per block.

Features are ordered (input, lateral 1..L, own 1..L, compressed), not layer by layer;
`ranet.model.official` maps between this order and the authors' order.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranet.architecture import BlockSpec, UnitSpec
from ranet.model.kernels import conv1x1, resize
from ranet.model.layers import ConvNormRelu, NormRelu, conv_weight

LateralFeatures: TypeAlias = tuple[Tensor, ...]
"""Features that a block provides to the next sub-network: the output of its last layer; from a
down block (input of the last layer, output of the last layer), which differ in size. Compressed
channels may follow; the next sub-network ignores them, because removing them would be a copy."""


class BottleneckUnits(nn.Module):
    """Weights of bottleneck units whose 1x1 convolutions share their first input channels."""

    def __init__(self, units: tuple[UnitSpec, ...]) -> None:
        super().__init__()
        self.widths = [unit.width for unit in units]
        shared = units[0].in_channels
        self.reduce = nn.Parameter(
            torch.cat([conv_weight(unit.width, shared, 1).detach() for unit in units])
        )
        self.convs = nn.ParameterList(
            conv_weight(unit.out_channels, unit.width, 3) for unit in units
        )


def _staircase(steps: nn.ParameterList, first_rows: int, width: int) -> Tensor:
    """Stack weights (out_j, in_j, 1, 1), padded with zeros to one width."""
    rows: list[Tensor] = [steps[0].new_zeros(first_rows, width, 1, 1)]
    rows += [F.pad(step, (0, 0, 0, 0, 0, width - step.shape[1])) for step in steps]
    return torch.cat(rows)


@dataclass(frozen=True)
class FoldedDenseLayers:
    """Weights of `DenseLayers` with their norms folded in."""

    shared: tuple[Tensor, Tensor]
    """Weight and bias of all layers' products with the input and lateral channels."""
    own: list[Tensor]
    """Weight of each later layer's product with the own channels."""
    convs: list[tuple[Tensor, Tensor, int]]
    """Weight, bias and stride of each layer's 3x3 convolution."""


class DenseLayers(BottleneckUnits):
    """Dense layers of a block, which compute the block's own channels.

    Unit j's 1x1 convolution is stored in three parts: on the block's input (all units in
    `reduce`), on the lateral channels of the layers before it, and on their own channels.
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__(spec.units)
        own, lateral = spec.units[0].out_channels, spec.lateral_channels
        self.stride = 2 if spec.is_down else 1
        early_layers = len(spec.units) - spec.is_down
        self.lateral_channels = early_layers * lateral
        later = list(enumerate(spec.units))[1:]
        self.reduce_lateral = nn.ParameterList(
            conv_weight(unit.width, j * lateral, 1) for j, unit in later if lateral
        )
        self.reduce_own = nn.ParameterList(conv_weight(unit.width, j * own, 1) for j, unit in later)
        self.norms = nn.ModuleList(NormRelu(unit.width) for unit in spec.units)
        self.conv_norms = nn.ModuleList(NormRelu(own) for _ in spec.units)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map input and lateral channels to the own channels of the layers.

        Returns:
            The channels of all layers but the last, and the channels of the last layer.
        """
        first, *later = conv1x1(features, self.reduce_weight()).split(self.widths, dim=1)
        if first.device.type != "cpu":
            # A GPU's batch norm is slow on some channels of wider pixels: it uses few blocks.
            first = first.clone()
        newest = self._run_unit(0, first)
        own = newest[:, :0]
        for j, (share, weight) in enumerate(zip(later, self.reduce_own, strict=True), start=1):
            own = torch.cat([own, newest], dim=1) if own.shape[1] else newest
            newest = self._run_unit(j, share + conv1x1(own, weight))
        return own, newest

    def fold(self) -> FoldedDenseLayers:
        """Fold the norms into the weights of inference."""
        norms = [norm for norm in self.norms if isinstance(norm, NormRelu)]
        conv_norms = [norm for norm in self.conv_norms if isinstance(norm, NormRelu)]
        shares = self.reduce_weight().split(self.widths)
        fused = [norm.fuse(share) for norm, share in zip(norms, shares, strict=True)]
        strides = [1] * (len(self.widths) - 1) + [self.stride]
        return FoldedDenseLayers(
            (torch.cat([weight for weight, _ in fused]), torch.cat([bias for _, bias in fused])),
            [norm.fuse(weight)[0] for norm, weight in zip(norms[1:], self.reduce_own, strict=True)],
            [
                (*norm.fuse(conv), stride)
                for norm, conv, stride in zip(conv_norms, self.convs, strides, strict=True)
            ],
        )

    def _run_unit(self, j: int, features: Tensor) -> Tensor:
        """Run unit j after its 1x1 convolution."""
        is_last = j == len(self.widths) - 1
        features = F.conv2d(
            self.norms[j](features),
            self.convs[j],
            stride=self.stride if is_last else 1,
            padding=1,
        )
        return self.conv_norms[j](features)

    def reduce_weight(self) -> Tensor:
        """Weight of all units' 1x1 convolutions on input and lateral channels."""
        if not self.reduce_lateral:
            return self.reduce
        staircase = _staircase(self.reduce_lateral, self.widths[0], self.lateral_channels)
        return torch.cat([self.reduce, staircase], dim=1)


class Laterals(BottleneckUnits):
    """Lateral units of a fusion block, over the lower block's features."""

    def __init__(self, units: tuple[UnitSpec, ...], lower: BlockSpec) -> None:
        super().__init__(units)
        own, lateral = lower.units[0].out_channels, lower.lateral_channels
        later = list(enumerate(units))[1:]
        self.reduce_lateral = nn.ParameterList(
            conv_weight(unit.width, j * lateral, 1) for j, unit in later if lateral
        )
        self.reduce_own = nn.ParameterList(conv_weight(unit.width, j * own, 1) for j, unit in later)
        # A down block provides the input of its last layer, without the channels of that layer.
        layers_read = len(units) - 1 if lower.is_down else len(units)
        self.lower_lateral = layers_read * lateral
        self.lower_own = layers_read * own
        self.norm = NormRelu(sum(self.widths))
        self.conv_norm = NormRelu(sum(unit.out_channels for unit in units))

    def forward(self, lower: Tensor) -> Tensor:
        """Map lower features to (batch, layers x lateral, height, width)."""
        features = self.norm(conv1x1(lower, self.reduce_weight()))
        weight, groups = self.conv_weight()
        return self.conv_norm(F.conv2d(features, weight, padding=1, groups=groups))

    def reduce_weight(self) -> Tensor:
        """Weight of all units' 1x1 convolutions on the lower features."""
        parts: list[Tensor] = [self.reduce]
        for steps, width in (
            (self.reduce_lateral, self.lower_lateral),
            (self.reduce_own, self.lower_own),
        ):
            if steps:
                parts.append(_staircase(steps, self.widths[0], width))
        return torch.cat(parts, dim=1)

    def conv_weight(self) -> tuple[Tensor, int]:
        """Weight of all units' 3x3 convolutions, and the number of groups."""
        weights: list[Tensor] = list(self.convs)
        if len(set(self.widths)) == 1:
            return torch.cat(weights), len(weights)
        total, ends = sum(self.widths), [0]
        for width in self.widths:
            ends.append(ends[-1] + width)
        padded = [
            F.pad(weight, (0, 0, 0, 0, start, total - end))
            for weight, (start, end) in zip(weights, pairwise(ends), strict=True)
        ]
        return torch.cat(padded), 1


class DenseBlock(nn.Module):
    """Normal block: dense layers, then the transition if the block has one."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.layers = DenseLayers(spec)
        self.transition = make_transition(spec)

    def forward(
        self, features: Tensor, lower: LateralFeatures = ()
    ) -> tuple[Tensor, LateralFeatures]:
        """Map features (batch, channels, height, width) to output and lateral features."""
        features = torch.cat([features, *self.layers(features)], dim=1)
        return self.transition(features), (features,)


class FusionBlock(nn.Module):
    """Fusion block: also reads the same block of the lower sub-network.

    Yang et al., CVPR 2020 (arXiv:2003.07326), section 3.2, figure 4.
    """

    def __init__(self, spec: BlockSpec, lower: BlockSpec) -> None:
        super().__init__()
        assert spec.lower is not None
        self.laterals = Laterals(spec.lower.units, lower)
        self.layers = DenseLayers(spec)
        self.compress = ConvNormRelu(spec.lower.in_channels, spec.lower.compressed_channels, 1)
        self.transition = make_transition(spec)
        self.is_down = spec.is_down
        self.lateral_channels = spec.lateral_channels

    def forward(self, features: Tensor, lower: LateralFeatures) -> tuple[Tensor, LateralFeatures]:
        """Map features (batch, channels, height, width) to output and lateral features.

        Args:
            features: output of the previous block.
            lower: lateral features of the same block of the lower sub-network.
        """
        size = features.shape[-2:]
        lateral = self.laterals(lower[0])
        compressed = self.compress(lower[-1])
        if not self.is_down:
            features = torch.cat([features, resize(lateral, size)], dim=1)
            parts = [features, *self.layers(features), resize(compressed, size)]
            features = torch.cat(parts, dim=1)
            return self.transition(features), (features,)
        early, late = lateral.tensor_split((-self.lateral_channels,), dim=1)
        features = torch.cat([features, resize(early, size)], dim=1)
        own, newest = self.layers(features)
        before = torch.cat([features, own], dim=1)
        size = newest.shape[-2:]
        parts = [resize(before, size), resize(late, size), newest, resize(compressed, size)]
        features = torch.cat(parts, dim=1)
        return self.transition(features), (before, features)


def make_transition(spec: BlockSpec) -> nn.Module:
    """Create the transition of a block: a 1x1 convolution, or the identity."""
    if spec.transition_channels is None:
        return nn.Identity()
    return ConvNormRelu(spec.gathered_channels, spec.transition_channels, 1)
