"""Graph form of a network: folded norms, fixed sizes, no branches.

An engine compiles a graph once, for any number of images. The modules here therefore decide
nothing by batch size, pixel count or thread count, and all sizes of a resize are constants from the
specification. The arithmetic is that of `ranet.model.blocks`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranet.architecture import BlockSpec
from ranet.model.blocks import DenseBlock, DenseLayers, FusionBlock
from ranet.model.exit import Exit
from ranet.model.layers import ConvNormRelu
from ranet.model.preprocessing import Normalize
from ranet.model.stem import LargeStemStep


class GraphConv(nn.Module):
    """Padded convolution with bias; channels after the first `in` are not read."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        in_channels: int | None = None,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        """Create a convolution.

        Args:
            weight: (out, in, height, width).
            bias: (out,), or None.
            in_channels: channels of the input, if more than the weight reads. Zeros in the weight
                cost less than a copy of the channels that are read.
            stride: step in pixels.
            groups: number of groups.
        """
        super().__init__()
        unread = 0 if in_channels is None else in_channels - weight.shape[1]
        self.register_buffer("weight", F.pad(weight, (0, 0, 0, 0, 0, unread)).clone())
        self.register_buffer("bias", bias)
        self.stride, self.groups = stride, groups
        self.padding = weight.shape[-1] // 2

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, in, height, width) to (batch, out, ...)."""
        return F.conv2d(
            features,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
        )


def graph_conv(conv: ConvNormRelu, in_channels: int | None = None) -> GraphConv:
    """Fold the norm of a convolution."""
    return GraphConv(*conv.norm.fuse(conv.weight), stride=conv.stride, in_channels=in_channels)


class GraphDenseLayers(nn.Module):
    """Dense layers of a block: one wide product, then a narrow chain."""

    def __init__(self, layers: DenseLayers) -> None:
        super().__init__()
        self.widths = layers.widths
        folded = layers.fold()
        self.shared = GraphConv(*folded.shared)
        self.own = nn.ModuleList(GraphConv(weight, None) for weight in folded.own)
        self.convs = nn.ModuleList(
            GraphConv(weight, bias, stride=stride) for weight, bias, stride in folded.convs
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """Map input and lateral channels to the own channels of each layer."""
        first, *later = self.shared(features).split(self.widths, dim=1)
        new = [self.convs[0](first.relu()).relu()]
        for share, product, conv in zip(later, self.own, self.convs[1:], strict=True):
            own = torch.cat(new, dim=1) if len(new) > 1 else new[0]
            new.append(conv((product(own) + share).relu()).relu())
        return new


class GraphLaterals(nn.Module):
    """Lateral and compressed channels of a fusion block, at the lower resolution."""

    def __init__(self, block: FusionBlock, in_channels: tuple[int, ...]) -> None:
        """Fold the norms.

        Args:
            block: the block in its training form.
            in_channels: channels of each tensor of lateral features.
        """
        super().__init__()
        laterals = block.laterals
        weight, bias = laterals.norm.fuse(laterals.reduce_weight())
        compress = block.compress.norm.fuse(block.compress.weight)
        self.num_reduced = len(bias)
        # The two products read the same features unless the lower block is a down block.
        self.compress: GraphConv | None = None
        if len(in_channels) == 1:
            width = compress[0].shape[1]
            weight = F.pad(weight, (0, 0, 0, 0, 0, width - weight.shape[1]))
            weight, bias = torch.cat([weight, compress[0]]), torch.cat([bias, compress[1]])
        else:
            self.compress = GraphConv(*compress, in_channels=in_channels[-1])
        self.reduce = GraphConv(weight, bias, in_channels=in_channels[0])
        weight, groups = laterals.conv_weight()
        self.conv = GraphConv(*laterals.conv_norm.fuse(weight), groups=groups)

    def forward(self, lower: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Map lateral features to lateral channels and compressed channels."""
        reduced = self.reduce(lower[0]).relu()
        if self.compress is not None:
            return self.conv(reduced).relu(), self.compress(lower[-1]).relu()
        sizes = [self.num_reduced, reduced.shape[1] - self.num_reduced]
        reduced, compressed = reduced.split(sizes, dim=1)
        return self.conv(reduced).relu(), compressed


class GraphBlock(nn.Module):
    """Normal or fusion block."""

    def __init__(
        self, block: DenseBlock | FusionBlock, spec: BlockSpec, lower_channels: tuple[int, ...]
    ) -> None:
        """Fold the norms of a block.

        Args:
            block: the block in its training form.
            spec: its specification.
            lower_channels: channels of each tensor of its lateral features; empty in a normal
                block.
        """
        super().__init__()
        self.laterals: GraphLaterals | None = None
        if isinstance(block, FusionBlock):
            self.laterals = GraphLaterals(block, lower_channels)
        self.layers = GraphDenseLayers(block.layers)
        self.transition: GraphConv | None = None
        if isinstance(block.transition, ConvNormRelu):
            self.transition = graph_conv(block.transition)
        self.spec = spec

    def forward(self, features: Tensor, *lower: Tensor) -> tuple[Tensor, ...]:
        """Map features (batch, channels, height, width) to output and lateral features.

        Args:
            features: output of the previous block.
            lower: lateral features of the same block of the lower sub-network.
        """
        spec = self.spec
        if self.laterals is None:
            features = torch.cat([features, *self.layers(features)], dim=1)
            return self._finish(features), features
        lateral, compressed = self.laterals(lower)
        assert spec.lower is not None
        before, after = spec.lower.in_size, spec.lower.out_size
        if not spec.is_down:
            features = torch.cat([features, resize(lateral, before, spec.in_size)], dim=1)
            own = self.layers(features)
            compressed = resize(compressed, after, spec.out_size)
            features = torch.cat([features, *own, compressed], dim=1)
            return self._finish(features), features
        channels = [lateral.shape[1] - spec.lateral_channels, spec.lateral_channels]
        early, late = lateral.split(channels, dim=1)
        features = torch.cat([features, resize(early, before, spec.in_size)], dim=1)
        *own, newest = self.layers(features)
        wide = torch.cat([features, *own], dim=1)
        parts = [
            resize(wide, spec.in_size, spec.out_size),
            resize(late, before, spec.out_size),
            newest,
            resize(compressed, after, spec.out_size),
        ]
        features = torch.cat(parts, dim=1)
        return self._finish(features), wide, features

    def _finish(self, features: Tensor) -> Tensor:
        """Apply the transition, if there is one."""
        return features if self.transition is None else self.transition(features).relu()


def lateral_channels(spec: BlockSpec) -> tuple[int, ...]:
    """Channels of each tensor of lateral features that a block returns."""
    if not spec.is_down:
        return (spec.gathered_channels,)
    last = spec.units[-1]
    return (last.in_channels, spec.gathered_channels)


def resize(features: Tensor, size: int, new_size: int) -> Tensor:
    """Resize square features bilinearly with aligned corners.

    The output size is a constant in the graph. Engines that compute it from a scale factor in
    float32 round it down in some cases: 9 pixels become 16 instead of 17.
    """
    if size == new_size:
        return features
    return F.interpolate(features, size=(new_size, new_size), mode="bilinear", align_corners=True)


class GraphExit(nn.Module):
    """Exit with folded norms."""

    weight: Tensor
    bias: Tensor

    def __init__(self, exit_: Exit) -> None:
        super().__init__()
        convs = [conv for conv in exit_.reduce if isinstance(conv, ConvNormRelu)]
        self.reduce = nn.ModuleList(graph_conv(conv) for conv in convs)
        self.register_buffer("weight", exit_.classify.weight.detach().clone())
        self.register_buffer("bias", exit_.classify.bias.detach().clone())

    def forward(self, features: Tensor) -> tuple[Tensor]:
        """Map the features of a block to logits (batch, classes)."""
        for conv in self.reduce:
            features = conv(features).relu()
        return (F.linear(F.avg_pool2d(features, 2).flatten(1), self.weight, self.bias),)


class GraphStemStep(nn.Module):
    """Stem step with a folded norm."""

    def __init__(self, step: LargeStemStep | ConvNormRelu, normalize: Normalize | None) -> None:
        """Fold the norm.

        Args:
            step: the step in its training form.
            normalize: normalisation of uint8 images before the step; None: no normalisation.
        """
        super().__init__()
        self.normalize = normalize
        self.is_large = isinstance(step, LargeStemStep)
        if isinstance(step, LargeStemStep):
            fused = step.norm.fuse(step.conv.weight, step.conv.bias)
            self.conv = GraphConv(*fused, stride=2)
        else:
            self.conv = graph_conv(step)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map (batch, channels, height, width) to features of this scale."""
        if self.normalize is not None:
            images = self.normalize(images)
        features = self.conv(images).relu()
        return (F.max_pool2d(features, 3, stride=2, padding=1) if self.is_large else features,)
