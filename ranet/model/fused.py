"""Inference form of a network: fused batch norms and preallocated feature buffers.

A dense block only appends channels. All blocks between two changes of resolution or transitions
write into one `FeatureBuffer` with the capacity for all their channels, so nothing is concatenated.
Wide 1x1 convolutions are matrix products that read the first channels of each pixel, new channels
are appended, and the lateral features of a block are a view of the first channels of its buffer.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranet.architecture import BlockSpec
from ranet.model.blocks import DenseBlock, DenseLayers, FusionBlock
from ranet.model.exit import Exit
from ranet.model.feature_buffer import FeatureBuffer, as_features, as_pixels, halved, resize_pixels
from ranet.model.kernels import conv3x3
from ranet.model.layers import ConvNormRelu
from ranet.model.stem import LargeStemStep
from ranet.torch_internals import BoundModule


class FastModule(BoundModule):
    """Module without hooks and with fast access to its tensors and submodules.

    For few images, checking for hooks at every call and looking up tensors at every use takes a
    tenth of the time. So this module calls `forward` directly; hooks run only on blocks and exits.
    """

    def __init_subclass__(cls) -> None:
        cls.__call__ = cls.forward


class FusedConv(FastModule):
    """3x3 convolution with bias, then ReLU, on pixels.

    Up to 8 channels fill at most half of a CPU's vector register. So the weight of a narrow
    convolution is stored for two neighbouring pixels at once: the output has the channels of both
    pixels, the input the four columns of pixels that the two read.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.out_channels = len(bias)
        self.is_paired = self.out_channels <= 8 and stride == groups == 1
        if self.is_paired:
            weight = torch.cat([F.pad(weight, (0, 1)), F.pad(weight, (1, 0))])
            bias = torch.cat([bias, bias])
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride, self.groups = stride, groups

    @classmethod
    def from_layer(cls, conv: ConvNormRelu) -> "FusedConv":
        """Fuse a convolution and its norm."""
        return cls(*conv.norm.fuse(conv.weight), stride=conv.stride)

    def forward(self, pixels: Tensor, shape: torch.Size) -> Tensor:
        """Map pixels of images of shape (batch, height, width) to output pixels."""
        features = as_features(pixels, shape)
        weight, bias = self.weight, self.bias
        if self.is_paired and shape[2] % 2 == 0 and pixels.device.type == "cpu":
            pairs = F.conv2d(features, weight, bias, stride=(1, 2), padding=1).relu_()
            return as_pixels(pairs).view(-1, self.out_channels)
        if self.is_paired:
            weight, bias = weight[: self.out_channels, ..., :3], bias[: self.out_channels]
        features = conv3x3(features, weight, bias, stride=self.stride, groups=self.groups)
        return as_pixels(features.relu_())


class FusedProduct(FastModule):
    """1x1 convolution with bias, without ReLU, as a matrix product on pixels."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.out_channels = len(bias)
        # BLAS libraries multiply blocks of 8 or 16 columns; other widths take up to twice as long.
        padding = -len(bias) % 8
        self.register_buffer("weight", F.pad(weight.flatten(1), (0, 0, 0, padding)).t())
        self.register_buffer("bias", F.pad(bias, (0, padding)))

    def forward(self, buffer: FeatureBuffer) -> Tensor:
        """Map the first channels of a buffer to (pixels, out_channels)."""
        weight = self.weight
        pixels = buffer.rows.narrow(1, 0, len(weight))
        return torch.addmm(self.bias, pixels, weight).narrow(1, 0, self.out_channels)


class FusedUnit(FastModule):
    """Dense layer after the shared product: its own product and 3x3 convolution."""

    own: Tensor | None

    def __init__(self, own: Tensor | None, conv: FusedConv) -> None:
        """Create a unit.

        Args:
            own: weight (in, out) on the own channels of the earlier layers; None in the first.
            conv: the 3x3 convolution of the layer.
        """
        super().__init__()
        self.register_buffer("own", own)
        self.conv = conv

    def forward(self, share: Tensor, earlier: Tensor | None, shape: torch.Size) -> Tensor:
        """Map a layer's share and earlier own channels to new pixels."""
        own = self.own
        if own is None or earlier is None:
            return self.conv(share.clamp_min(0), shape)
        return self.conv(add_product(share, earlier, own).relu_(), shape)


class FusedDenseLayers(FastModule):
    """Fused `DenseLayers`, which append their channels to a feature buffer."""

    def __init__(self, layers: DenseLayers) -> None:
        super().__init__()
        self.widths = layers.widths
        folded = layers.fold()
        self.shared = FusedProduct(*folded.shared)
        own = [weight.flatten(1).t() for weight in folded.own]
        convs = (FusedConv(weight, bias, stride=stride) for weight, bias, stride in folded.convs)
        self.units = nn.ModuleList(map(FusedUnit, (None, *own), convs))
        self.is_down = layers.stride == 2

    def forward(self, buffer: FeatureBuffer) -> Tensor | None:
        """Append the channels of each layer to the buffer.

        Returns:
            None, or in a down block the channels of the last layer, which have another size and are
            not appended.
        """
        shares = self.shared(buffer).split(self.widths, dim=1)
        shape = buffer.shape
        own: Tensor | None = None  # channels of all layers but the last (pixels, channels)
        new: Tensor | None = None
        for share, unit in zip(shares, self.units, strict=True):
            if new is not None:
                own = new if own is None else torch.cat((own, new), dim=1)
            new = unit(share, own, shape)
        assert new is not None
        if own is not None:
            buffer.append(own)
        if self.is_down:
            return new
        buffer.append(new)
        return None


def add_product(share: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Add pixels (pixels, in) times weight (in, out) to a share."""
    is_narrow = weight.shape[1] < 12 and pixels.dtype == torch.float32 and pixels.is_cpu
    if not is_narrow or len(pixels) <= 4096 or len(pixels) % 16:
        return torch.addmm(share, pixels, weight)
    # A float32 product with few columns is slow: they do not fill a vector register. The same
    # product as a convolution of 16 images of one row is fast. Pixel counts that do not divide
    # into 16 images are rare.
    features = pixels.view(16, -1, 1, pixels.shape[1]).permute(0, 3, 1, 2)
    product = F.conv2d(features, weight.t()[:, :, None, None])
    return product.permute(0, 2, 3, 1).reshape(share.shape).add_(share)


class FusedLaterals(FastModule):
    """Lateral and compressed channels of a fusion block."""

    def __init__(self, block: FusionBlock) -> None:
        super().__init__()
        laterals = block.laterals
        lateral = laterals.norm.fuse(laterals.reduce_weight())
        compress = block.compress.norm.fuse(block.compress.weight)
        self.num_reduced = len(lateral[1])
        # Both products read the same features unless the lower block is a down block.
        self.shares_input = lateral[0].shape[1] == compress[0].shape[1]
        if self.shares_input:
            self.product = FusedProduct(
                *(torch.cat(pair) for pair in zip(lateral, compress, strict=True))
            )
        else:
            self.reduce = FusedProduct(*lateral)
            self.compress = FusedProduct(*compress)
        weight, groups = laterals.conv_weight()
        self.conv = FusedConv(*laterals.conv_norm.fuse(weight), groups=groups)

    def forward(self, lower: tuple[FeatureBuffer, ...]) -> tuple[Tensor, Tensor]:
        """Map lateral features to lateral channels and compressed channels (before ReLU)."""
        if self.shares_input:
            reduced, compressed = self.product(lower[0]).tensor_split((self.num_reduced,), dim=1)
        else:
            reduced, compressed = self.reduce(lower[0]), self.compress(lower[-1])
        return self.conv(reduced.clamp_min(0), lower[0].shape), compressed


class FusedBlock(nn.Module):
    """Normal or fusion block on a feature buffer."""

    def __init__(
        self, block: DenseBlock | FusionBlock, spec: BlockSpec, capacity: int, is_top: bool
    ) -> None:
        """Fuse a block.

        Args:
            block: the block in its training form.
            spec: its specification.
            capacity: channels of the buffer that the block returns.
            is_top: whether the block is in the last sub-network. Its lateral features are not
                read, so its transition reuses the memory of its input.
        """
        super().__init__()
        self.lower = FusedLaterals(block) if isinstance(block, FusionBlock) else None
        self.layers = FusedDenseLayers(block.layers)
        self.transition = (
            FusedProduct(*block.transition.norm.fuse(block.transition.weight))
            if isinstance(block.transition, ConvNormRelu)
            else None
        )
        self.lateral_channels = spec.lateral_channels
        self.capacity = capacity
        self.is_top = is_top
        self.smaller_capacity = _capacity_before_transition(spec, capacity, is_top)

    def forward(
        self, buffer: FeatureBuffer, lower: tuple[FeatureBuffer, ...] = ()
    ) -> tuple[FeatureBuffer, tuple[FeatureBuffer, ...]]:
        """Append the block's channels; return the buffer and the lateral features."""
        lateral_features: tuple[FeatureBuffer, ...] = ()
        compressed = late = None
        if self.lower is not None:
            lateral, compressed = self.lower(lower)
            if self.layers.is_down:
                lateral, late = lateral.tensor_split((-self.lateral_channels,), dim=1)
            buffer.append(resize_pixels(lateral, lower[0].shape, buffer.shape))
        newest = self.layers(buffer)
        if newest is not None:
            assert late is not None
            lateral_features = (buffer.narrow(buffer.used),)
            smaller = FeatureBuffer.empty(
                buffer.data, halved(buffer.shape)[1:], self.smaller_capacity
            )
            smaller.append(resize_pixels(buffer.pixels, buffer.shape, smaller.shape))
            smaller.append(resize_pixels(late, lower[0].shape, smaller.shape))
            smaller.append(newest)
            buffer = smaller
        lateral_features = (*lateral_features, buffer.narrow(buffer.used))
        if compressed is not None:
            if lower[-1].shape != buffer.shape:
                compressed = resize_pixels(compressed.clamp_min(0), lower[-1].shape, buffer.shape)
            buffer.append(compressed)
        if self.transition is not None:
            kept = self.transition(buffer)
            if self.is_top:
                buffer = buffer.narrow(0)
            else:
                buffer = FeatureBuffer.empty(buffer.data, buffer.shape[1:], self.capacity)
            buffer.append(kept)
        return buffer, lateral_features


class FusedExit(nn.Module):
    """Fused `Exit` on a feature buffer."""

    def __init__(self, exit_: Exit) -> None:
        super().__init__()
        convs = [conv for conv in exit_.reduce if isinstance(conv, ConvNormRelu)]
        self.reduce = nn.ModuleList(FusedConv.from_layer(conv) for conv in convs)
        self.classify = copy.deepcopy(exit_.classify)

    def forward(self, buffer: FeatureBuffer) -> Tensor:
        """Map the features of a buffer to logits (batch, classes)."""
        pixels, shape = buffer.pixels, buffer.shape
        for conv in self.reduce:
            pixels, shape = conv(pixels, shape), halved(shape)
        return self.classify(F.avg_pool2d(as_features(pixels, shape), 2).flatten(1))


class FusedStemStep(nn.Module):
    """Stem step with a fused norm."""

    weight: Tensor
    bias: Tensor

    def __init__(self, step: LargeStemStep | ConvNormRelu) -> None:
        super().__init__()
        self.is_large = isinstance(step, LargeStemStep)
        if isinstance(step, LargeStemStep):
            weight, bias = step.norm.fuse(step.conv.weight, step.conv.bias)
            self.stride, self.padding = 2, 3
        else:
            weight, bias = step.norm.fuse(step.weight)
            self.stride, self.padding = step.stride, 1
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to features of this scale."""
        features = F.conv2d(
            images, self.weight, self.bias, stride=self.stride, padding=self.padding
        ).relu_()
        return F.max_pool2d(features, 3, stride=2, padding=1) if self.is_large else features


class FusedSubNetwork(nn.Module):
    """Fused blocks and exits of one sub-network."""

    def __init__(
        self,
        blocks: nn.ModuleList,
        exits: nn.ModuleList,
        specs: tuple[BlockSpec, ...],
        is_top: bool,
    ) -> None:
        super().__init__()
        capacities = _buffer_capacities(specs, is_top)
        self.capacity = capacities[0]
        self.blocks = nn.ModuleList(
            FusedBlock(block, spec, capacity, is_top)
            for block, spec, capacity in zip(blocks, specs, capacities[1:], strict=True)
            if isinstance(block, DenseBlock | FusionBlock)
        )
        self.exits = nn.ModuleList(FusedExit(exit_) for exit_ in exits if isinstance(exit_, Exit))

    def begin(self, base: Tensor) -> FeatureBuffer:
        """Copy base features (batch, channels, height, width) to a new buffer."""
        buffer = FeatureBuffer.empty(base, base.shape[2:], self.capacity)
        buffer.append(as_pixels(base))
        return buffer


def _buffer_capacities(specs: tuple[BlockSpec, ...], is_top: bool) -> list[int]:
    """Capacity in channels of each block's input buffer and the last output."""
    capacities = [specs[-1].out_channels]
    for spec in reversed(specs):
        if spec.is_down:
            last_layer = spec.lateral_channels + spec.units[-1].out_channels
            capacities.append(spec.dense_channels - last_layer)
        else:
            capacities.append(_capacity_before_transition(spec, capacities[-1], is_top))
    return capacities[::-1]


def _capacity_before_transition(spec: BlockSpec, capacity: int, is_top: bool) -> int:
    """Capacity of a block's buffer before a transition to `capacity`."""
    if not spec.transition_channels:
        return capacity
    return max(spec.gathered_channels, capacity) if is_top else spec.gathered_channels
