"""Dense blocks in their fast form.

A dense layer reads everything before it: x_j = cat(x_{j-1}, unit_j(x_{j-1})). Written so, each
layer copies and re-reads all earlier channels. Here the same function is computed with every
channel read as rarely as possible, which batch norm allows because it acts per channel:

* what is known before the first layer (the input and the channels from below) goes through
  *one* wide 1x1 convolution for all layers; a layer then adds only what the new channels of its
  predecessors contribute;
* all lateral units of a fusion block read prefixes of one tensor: one 1x1 convolution with a
  staircase of zeros, one grouped 3x3 convolution and one resize serve all layers;
* channels are joined once per block.

Features are ordered (input, lateral 1..L, own 1..L, compressed), not layer by layer;
`ranet.model.official` knows both orders.
"""

from itertools import pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranet.architecture import BlockSpec, UnitSpec
from ranet.model.kernels import conv1x1, resize
from ranet.model.layers import ConvNormRelu, NormRelu, conv_weight

LateralFeatures: TypeAlias = tuple[Tensor, ...]
"""What a block hands to the sub-network above: the features behind its last layer; a down block
hands up those before its last layer as well, which have another size: (before, behind). Behind
them may lie compressed channels, which are not for above: cutting them off would be a copy."""


class _Units(nn.Module):
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
    """Join weights (out_j, in_j, 1, 1) below rows of zeros, padded with zeros to one width."""
    rows: list[Tensor] = [steps[0].new_zeros(first_rows, width, 1, 1)]
    rows += [F.pad(step, (0, 0, 0, 0, 0, width - step.shape[1])) for step in steps]
    return torch.cat(rows)


class DenseLayers(_Units):
    """The layers of a block that compute its own channels.

    Unit j's 1x1 convolution is stored in three parts: on the block's input (all units in
    `reduce`), on the lateral channels of the layers before it, and on their own channels.
    """

    def __init__(self, plan: BlockSpec) -> None:
        super().__init__(plan.units)
        own, lateral = plan.units[0].out_channels, plan.lateral_channels
        self.stride = 2 if plan.is_down else 1
        layers_known = len(plan.units) - plan.is_down
        self.lateral_channels = layers_known * lateral
        later = list(enumerate(plan.units))[1:]
        self.reduce_lateral = nn.ParameterList(
            conv_weight(unit.width, j * lateral, 1) for j, unit in later if lateral
        )
        self.reduce_own = nn.ParameterList(conv_weight(unit.width, j * own, 1) for j, unit in later)
        self.norms = nn.ModuleList(NormRelu(unit.width) for unit in plan.units)
        self.conv_norms = nn.ModuleList(NormRelu(own) for _ in plan.units)

    def forward(self, known: Tensor) -> tuple[Tensor, Tensor]:
        """Map the known channels (input, lateral) to those of all layers but the last, and its."""
        first, *later = conv1x1(known, self.reduce_weight()).split(self.widths, dim=1)
        newest = self._run_unit(0, first)
        own = newest[:, :0]
        for j, (share, weight) in enumerate(zip(later, self.reduce_own, strict=True), start=1):
            own = torch.cat([own, newest], dim=1) if own.shape[1] else newest
            newest = self._run_unit(j, share + conv1x1(own, weight))
        return own, newest

    def _run_unit(self, j: int, features: Tensor) -> Tensor:
        """Run unit j behind its 1x1 convolution."""
        is_last = j == len(self.widths) - 1
        features = F.conv2d(
            self.norms[j](features),
            self.convs[j],
            stride=self.stride if is_last else 1,
            padding=1,
        )
        return self.conv_norms[j](features)

    def reduce_weight(self) -> Tensor:
        """Weight of all units' 1x1 convolutions on the known channels."""
        if not self.reduce_lateral:
            return self.reduce
        staircase = _staircase(self.reduce_lateral, self.widths[0], self.lateral_channels)
        return torch.cat([self.reduce, staircase], dim=1)


class Laterals(_Units):
    """All units of a fusion block that read the features of the block below."""

    def __init__(self, units: tuple[UnitSpec, ...], below: BlockSpec) -> None:
        super().__init__(units)
        own, lateral = below.units[0].out_channels, below.lateral_channels
        later = list(enumerate(units))[1:]
        self.reduce_lateral = nn.ParameterList(
            conv_weight(unit.width, j * lateral, 1) for j, unit in later if lateral
        )
        self.reduce_own = nn.ParameterList(conv_weight(unit.width, j * own, 1) for j, unit in later)
        # A down block hands up the features before its last layer, without that layer's channels.
        layers_read = len(units) - 1 if below.is_down else len(units)
        self.below_lateral = layers_read * lateral
        self.below_own = layers_read * own
        self.norm = NormRelu(sum(self.widths))
        self.conv_norm = NormRelu(sum(unit.out_channels for unit in units))

    def forward(self, below: Tensor) -> Tensor:
        """Map features of the block below to (batch, layers x lateral, height, width)."""
        features = self.norm(conv1x1(below, self.reduce_weight()))
        weight, groups = self.conv_weight()
        return self.conv_norm(F.conv2d(features, weight, padding=1, groups=groups))

    def reduce_weight(self) -> Tensor:
        """Weight of all units' 1x1 convolutions on the features of the block below."""
        parts: list[Tensor] = [self.reduce]
        for steps, width in (
            (self.reduce_lateral, self.below_lateral),
            (self.reduce_own, self.below_own),
        ):
            if steps:
                parts.append(_staircase(steps, self.widths[0], width))
        return torch.cat(parts, dim=1)

    def conv_weight(self) -> tuple[Tensor, int]:
        """Weight of all units' 3x3 convolutions, and its number of groups."""
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
    """A normal block: dense layers, then a transition where the plan has one."""

    def __init__(self, plan: BlockSpec) -> None:
        super().__init__()
        self.layers = DenseLayers(plan)
        self.transition = _transition(plan)

    def forward(
        self, features: Tensor, below: LateralFeatures = ()
    ) -> tuple[Tensor, LateralFeatures]:
        """Map features (batch, channels, height, width) to output and what is passed up."""
        features = torch.cat([features, *self.layers(features)], dim=1)
        return self.transition(features), (features,)


class FusionBlock(nn.Module):
    """A block that also reads the block of the sub-network below.

    Yang et al., CVPR 2020 (arXiv:2003.07326), section 3.2, figure 4.
    """

    def __init__(self, plan: BlockSpec, below: BlockSpec) -> None:
        super().__init__()
        assert plan.lower is not None
        self.laterals = Laterals(plan.lower.units, below)
        self.layers = DenseLayers(plan)
        self.compress = ConvNormRelu(plan.lower.in_channels, plan.lower.compressed_channels, 1)
        self.transition = _transition(plan)
        self.is_down = plan.is_down
        self.lateral_channels = plan.lateral_channels

    def forward(self, features: Tensor, below: LateralFeatures) -> tuple[Tensor, LateralFeatures]:
        """Map features (batch, channels, height, width) to output and what is passed up.

        Args:
            features: output of the block before.
            below: what the same block of the sub-network below passed up.
        """
        size = features.shape[-2:]
        lateral = self.laterals(below[0])
        compressed = self.compress(below[-1])
        if not self.is_down:
            known = torch.cat([features, resize(lateral, size)], dim=1)
            parts = [known, *self.layers(known), resize(compressed, size)]
            features = torch.cat(parts, dim=1)
            return self.transition(features), (features,)
        early, late = lateral.tensor_split((-self.lateral_channels,), dim=1)
        known = torch.cat([features, resize(early, size)], dim=1)
        own, newest = self.layers(known)
        before = torch.cat([known, own], dim=1)
        size = newest.shape[-2:]
        parts = [resize(before, size), resize(late, size), newest, resize(compressed, size)]
        features = torch.cat(parts, dim=1)
        return self.transition(features), (before, features)


def _transition(plan: BlockSpec) -> nn.Module:
    if plan.transition_channels is None:
        return nn.Identity()
    return ConvNormRelu(plan.gathered_channels, plan.transition_channels, 1)
