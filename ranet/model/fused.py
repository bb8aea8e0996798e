"""The inference form: norms folded into convolutions, features grown in place.

A dense block only ever appends channels. Here a whole stage, the blocks between two changes of
resolution or transitions, writes into one `FeatureBuffer` that is wide enough from the start, so nothing
is joined: wide 1x1 convolutions are matrix products that read the first channels of each pixel,
new channels are written behind them, and what a block passes up is the same memory, read less far.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranet.architecture import BlockSpec
from ranet.model.blocks import DenseBlock, DenseLayers, FusionBlock
from ranet.model.exit import Exit
from ranet.model.feature_buffer import FeatureBuffer, as_features, as_pixels, halved, resize_pixels
from ranet.model.kernels import conv3x3
from ranet.model.layers import ConvNormRelu, NormRelu
from ranet.model.stem import LargeStemStep


class Part(nn.Module):
    """What blocks and exits are made of: called and read without a module's detours.

    Of few images, looking for hooks at every call and for tensors at every use takes a
    tenth of the time. So hooks are not called here, only around blocks and exits, and
    tensors and parts lie, after `_apply`, where Python looks for attributes first.
    """

    def __init_subclass__(cls) -> None:
        cls.__call__ = cls.forward

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(_bind)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Part":
        super()._apply(fn, recurse)
        _bind(self)
        return self


def _bind(part: nn.Module, *_: object) -> None:
    part.__dict__.update(part._buffers)
    part.__dict__.update(part._modules)


class FusedConv(Part):
    """3x3 convolution with bias, then ReLU, of pixels.

    Up to 8 channels would fill half of a CPU's vector at most. So the weight is stored for two
    neighbours at once: the channels of both as one output, from the four pixels of a row that
    they read.
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
    def of(cls, conv: ConvNormRelu) -> "FusedConv":
        """Fold a convolution and its norm."""
        return cls(*conv.norm.folded(conv.weight), stride=conv.stride)

    def forward(self, pixels: Tensor, shape: torch.Size) -> Tensor:
        """Map pixels of images of a shape (batch, height, width) to those of the output."""
        features = as_features(pixels, shape)
        weight, bias = self.weight, self.bias
        if self.is_paired and shape[2] % 2 == 0 and pixels.device.type == "cpu":
            pairs = F.conv2d(features, weight, bias, stride=(1, 2), padding=1).relu_()
            return as_pixels(pairs).view(-1, self.out_channels)
        if self.is_paired:
            weight, bias = weight[: self.out_channels, ..., :3], bias[: self.out_channels]
        features = conv3x3(features, weight, bias, stride=self.stride, groups=self.groups)
        return as_pixels(features.relu_())


class FusedProduct(Part):
    """1x1 convolution with bias as a product of pixels and a weight (in, out), without a ReLU."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.out_channels = len(bias)
        # Libraries multiply by blocks of 8 or 16 columns; in between they are up to half as fast.
        room = -len(bias) % 8
        self.register_buffer("weight", F.pad(weight.flatten(1), (0, 0, 0, room)).t())
        self.register_buffer("bias", F.pad(bias, (0, room)))

    def forward(self, canvas: FeatureBuffer) -> Tensor:
        """Map the first channels of a canvas to (pixels, out_channels)."""
        weight = self.weight
        pixels = canvas.rows.narrow(1, 0, len(weight))
        return torch.addmm(self.bias, pixels, weight).narrow(1, 0, self.out_channels)


class FusedUnit(Part):
    """What a layer does behind the shared product: its own product, and its 3x3 convolution."""

    own: Tensor | None

    def __init__(self, own: Tensor | None, conv: FusedConv) -> None:
        """Take the weight (in, out) on the channels of the layers before; the first has none."""
        super().__init__()
        self.register_buffer("own", own)
        self.conv = conv

    def forward(self, share: Tensor, before: Tensor | None, shape: torch.Size) -> Tensor:
        """Map its share of the product and the channels of the layers before to new pixels."""
        own = self.own
        if own is None or before is None:
            return self.conv(share.clamp_min(0), shape)
        return self.conv(add_product(share, before, own).relu_(), shape)


class FusedDenseLayers(Part):
    """`DenseLayers` that write their channels behind those they read."""

    def __init__(self, layers: DenseLayers) -> None:
        super().__init__()
        self.widths = layers.widths
        norms = [norm for norm in layers.norms if isinstance(norm, NormRelu)]
        conv_norms = [norm for norm in layers.conv_norms if isinstance(norm, NormRelu)]
        shares = layers.reduce_weight().split(self.widths)
        folded = [norm.folded(share) for norm, share in zip(norms, shares, strict=True)]
        self.known = FusedProduct(
            torch.cat([weight for weight, _ in folded]), torch.cat([bias for _, bias in folded])
        )
        own = [
            norm.folded(weight)[0].flatten(1).t()
            for norm, weight in zip(norms[1:], layers.reduce_own, strict=True)
        ]
        strides = [1] * (len(self.widths) - 1) + [layers.stride]
        convs = (
            FusedConv(*norm.folded(conv), stride=stride)
            for norm, conv, stride in zip(conv_norms, layers.convs, strides, strict=True)
        )
        self.units = nn.ModuleList(map(FusedUnit, (None, *own), convs))
        self.is_down = layers.stride == 2

    def forward(self, canvas: FeatureBuffer) -> Tensor | None:
        """Append each layer's channels; give those of a down block's last layer instead."""
        shares = self.known(canvas).split(self.widths, dim=1)
        shape = canvas.shape
        own: Tensor | None = None  # of all layers but the last, (pixels, channels)
        new: Tensor | None = None
        for share, unit in zip(shares, self.units, strict=True):
            if new is not None:
                own = new if own is None else torch.cat((own, new), dim=1)
            new = unit(share, own, shape)
        assert new is not None
        if own is not None:
            canvas.append(own)
        if self.is_down:
            return new
        canvas.append(new)
        return None


def add_product(share: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Add the product of pixels (pixels, in) and a weight (in, out) to a share (pixels, out)."""
    is_narrow = weight.shape[1] < 12 and pixels.dtype == torch.float32
    if not is_narrow or len(pixels) <= 4096 or len(pixels) % 16:
        return torch.addmm(share, pixels, weight)
    # A product with few columns is slow in float32: it cannot fill a vector with them. As a
    # convolution of 16 images of one row it is not; pixels that make no such images are rare.
    features = pixels.view(16, -1, 1, pixels.shape[1]).permute(0, 3, 1, 2)
    product = F.conv2d(features, weight.t()[:, :, None, None])
    return product.permute(0, 2, 3, 1).reshape(share.shape).add_(share)


class FusedLaterals(Part):
    """What a fusion block computes from the block below: lateral and compressed channels."""

    def __init__(self, block: FusionBlock) -> None:
        super().__init__()
        laterals = block.laterals
        lateral = laterals.norm.folded(laterals.reduce_weight())
        compress = block.compress.norm.folded(block.compress.weight)
        self.num_reduced = len(lateral[1])
        # Both read the same features, except those of a down block, which come in two sizes.
        self.is_one = lateral[0].shape[1] == compress[0].shape[1]
        if self.is_one:
            self.product = FusedProduct(
                *(torch.cat(pair) for pair in zip(lateral, compress, strict=True))
            )
        else:
            self.reduce = FusedProduct(*lateral)
            self.compress = FusedProduct(*compress)
        weight, groups = laterals.conv_weight()
        self.conv = FusedConv(*laterals.conv_norm.folded(weight), groups=groups)

    def forward(self, below: tuple[FeatureBuffer, ...]) -> tuple[Tensor, Tensor]:
        """Map what the block below passed up to lateral channels, and compressed before ReLU."""
        if self.is_one:
            reduced, compressed = self.product(below[0]).tensor_split((self.num_reduced,), dim=1)
        else:
            reduced, compressed = self.reduce(below[0]), self.compress(below[-1])
        return self.conv(reduced.clamp_min(0), below[0].shape), compressed


class FusedBlock(nn.Module):
    """A normal or fusion block on a canvas."""

    def __init__(
        self, block: DenseBlock | FusionBlock, plan: BlockSpec, room: int, is_top: bool
    ) -> None:
        """Fold a block whose output needs a canvas of `room` channels.

        What a block of the top scale passes up is read by none: its transition overwrites what
        it has read, in memory that is at hand.
        """
        super().__init__()
        self.below = FusedLaterals(block) if isinstance(block, FusionBlock) else None
        self.layers = FusedDenseLayers(block.layers)
        self.transition = (
            FusedProduct(*block.transition.norm.folded(block.transition.weight))
            if isinstance(block.transition, ConvNormRelu)
            else None
        )
        self.lateral_channels = plan.lateral_channels
        self.room = room
        self.is_top = is_top
        self.smaller_room = _channels_before(plan, room, is_top)

    def forward(
        self, canvas: FeatureBuffer, below: tuple[FeatureBuffer, ...] = ()
    ) -> tuple[FeatureBuffer, tuple[FeatureBuffer, ...]]:
        """Grow the canvas by this block; give it and what is passed up."""
        passed_up: tuple[FeatureBuffer, ...] = ()
        compressed = late = None
        if self.below is not None:
            lateral, compressed = self.below(below)
            if self.layers.is_down:
                lateral, late = lateral.tensor_split((-self.lateral_channels,), dim=1)
            canvas.append(resize_pixels(lateral, below[0].shape, canvas.shape))
        newest = self.layers(canvas)
        if newest is not None:
            assert late is not None
            passed_up = (canvas.narrow(canvas.used),)
            smaller = FeatureBuffer.empty(canvas.data, halved(canvas.shape)[1:], self.smaller_room)
            smaller.append(resize_pixels(canvas.pixels, canvas.shape, smaller.shape))
            smaller.append(resize_pixels(late, below[0].shape, smaller.shape))
            smaller.append(newest)
            canvas = smaller
        passed_up = (*passed_up, canvas.narrow(canvas.used))
        if compressed is not None:
            if below[-1].shape != canvas.shape:
                compressed = resize_pixels(compressed.clamp_min(0), below[-1].shape, canvas.shape)
            canvas.append(compressed)
        if self.transition is not None:
            kept = self.transition(canvas)
            if self.is_top:
                canvas = canvas.narrow(0)
            else:
                canvas = FeatureBuffer.empty(canvas.data, canvas.shape[1:], self.room)
            canvas.append(kept)
        return canvas, passed_up


class FusedExit(nn.Module):
    """`Exit` on a canvas."""

    def __init__(self, exit_: Exit) -> None:
        super().__init__()
        convs = [conv for conv in exit_.reduce if isinstance(conv, ConvNormRelu)]
        self.reduce = nn.ModuleList(FusedConv.of(conv) for conv in convs)
        self.classify = copy.deepcopy(exit_.classify)

    def forward(self, canvas: FeatureBuffer) -> Tensor:
        """Map the features of a canvas to logits (batch, classes)."""
        pixels, shape = canvas.pixels, canvas.shape
        for conv in self.reduce:
            pixels, shape = conv(pixels, shape), halved(shape)
        return self.classify(F.avg_pool2d(as_features(pixels, shape), 2).flatten(1))


class FusedStemStep(nn.Module):
    """A step of the stem with its norm folded."""

    weight: Tensor
    bias: Tensor

    def __init__(self, step: LargeStemStep | ConvNormRelu) -> None:
        super().__init__()
        self.is_large = isinstance(step, LargeStemStep)
        if isinstance(step, LargeStemStep):
            weight, bias = step.norm.folded(step.conv.weight, step.conv.bias)
            self.stride, self.padding = 2, 3
        else:
            weight, bias = step.norm.folded(step.weight)
            self.stride, self.padding = step.stride, 1
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images or features (batch, channels, height, width) to those of this scale."""
        features = F.conv2d(
            images, self.weight, self.bias, stride=self.stride, padding=self.padding
        ).relu_()
        return F.max_pool2d(features, 3, stride=2, padding=1) if self.is_large else features


class FusedSubNetwork(nn.Module):
    """The blocks and exits of one scale on canvases."""

    def __init__(
        self,
        blocks: nn.ModuleList,
        exits: nn.ModuleList,
        plans: tuple[BlockSpec, ...],
        is_top: bool,
    ) -> None:
        super().__init__()
        rooms = _buffer_channels(plans, is_top)
        self.room = rooms[0]
        self.blocks = nn.ModuleList(
            FusedBlock(block, plan, room, is_top)
            for block, plan, room in zip(blocks, plans, rooms[1:], strict=True)
            if isinstance(block, DenseBlock | FusionBlock)
        )
        self.exits = nn.ModuleList(FusedExit(exit_) for exit_ in exits if isinstance(exit_, Exit))

    def begin(self, base: Tensor) -> FeatureBuffer:
        """Put base features (batch, channels, height, width) on a canvas."""
        canvas = FeatureBuffer.empty(base, base.shape[2:], self.room)
        canvas.append(as_pixels(base))
        return canvas


def _buffer_channels(plans: tuple[BlockSpec, ...], is_top: bool) -> list[int]:
    """Channels for which the canvas given to each block, and that behind the last, needs room."""
    rooms = [plans[-1].out_channels]
    for plan in reversed(plans):
        if plan.is_down:
            last_layer = plan.lateral_channels + plan.units[-1].out_channels
            rooms.append(plan.dense_channels - last_layer)
        else:
            rooms.append(_channels_before(plan, rooms[-1], is_top))
    return rooms[::-1]


def _channels_before(plan: BlockSpec, room: int, is_top: bool) -> int:
    """Channels that the canvas of a block's output needs, before a transition to one of `room`."""
    if not plan.transition_channels:
        return room
    return max(plan.gathered_channels, room) if is_top else plan.gathered_channels
