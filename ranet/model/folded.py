"""The inference form: norms folded into convolutions, features grown in place.

A dense block only ever appends channels. Here a whole stage, the blocks between two changes of
resolution or transitions, writes into one `Canvas` that is wide enough from the start, so nothing
is joined: wide 1x1 convolutions are matrix products that read the first channels of each pixel,
new channels are written behind them, and what a block passes up is the same memory, read less far.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranet.model.blocks import DenseBlock, DenseLayers, FusionBlock
from ranet.model.exit import Exit
from ranet.model.layers import ConvNormRelu, NormRelu, conv1x1, resize
from ranet.model.stem import LargeStemStep
from ranet.plan import BlockPlan


class Canvas:
    """Features of some images with room for more channels.

    `data` is (batch, height, width, room), of which the first `used` channels are set.
    """

    def __init__(self, data: Tensor, used: int) -> None:
        self.data = data
        self.used = used

    @classmethod
    def empty(cls, like: Tensor, size: torch.Size, room: int) -> "Canvas":
        """Make one without features, for as many images as there are in `like`."""
        return cls(like.new_empty(len(like), *size, room), 0)

    @property
    def size(self) -> torch.Size:
        """Height and width."""
        return self.data.shape[1:3]

    @property
    def features(self) -> Tensor:
        """The features so far as (batch, channels, height, width), a view."""
        return self.data[..., : self.used].permute(0, 3, 1, 2)

    def pixels(self, start: int, end: int) -> Tensor:
        """Some channels as (pixels of all images, channels), a view."""
        return self.data.view(-1, self.data.shape[-1])[:, start:end]

    def append(self, features: Tensor) -> None:
        """Write features (batch, channels, height, width) behind the others, cut off at 0."""
        end = self.used + features.shape[1]
        torch.clamp_min(features.permute(0, 2, 3, 1), 0, out=self.data[..., self.used : end])
        self.used = end

    def take(self, index: Tensor) -> "Canvas":
        """Gather images by their indices."""
        return Canvas(self.data.index_select(0, index), self.used)

    def as_far_as(self, used: int) -> "Canvas":
        """The same features, read only as far as so many channels."""
        return Canvas(self.data, used)


class FoldedConv(nn.Module):
    """Convolution with bias; the ReLU behind it is left to whoever reads or writes the result."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride, self.padding, self.groups = stride, padding, groups

    @classmethod
    def of(cls, conv: ConvNormRelu) -> "FoldedConv":
        """Fold a convolution and its norm."""
        weight, bias = conv.norm.folded(conv.weight)
        return cls(weight, bias, stride=conv.stride, padding=conv.padding)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, in_channels, height, width) to (batch, out_channels, ...)."""
        return F.conv2d(
            features,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
        )


class FoldedProduct(nn.Module):
    """1x1 convolution with bias as a product of pixels and channels."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.flatten(1))
        self.register_buffer("bias", bias)

    def forward(self, canvas: Canvas) -> Tensor:
        """Map the first channels of a canvas to (pixels of all images, out_channels)."""
        pixels = canvas.pixels(0, self.weight.shape[1])
        return torch.addmm(self.bias, pixels, self.weight.t())


class FoldedDenseLayers(nn.Module):
    """`DenseLayers` that write their channels behind those they read."""

    def __init__(self, layers: DenseLayers) -> None:
        super().__init__()
        self.widths = layers.widths
        norms = [norm for norm in layers.norms if isinstance(norm, NormRelu)]
        conv_norms = [norm for norm in layers.conv_norms if isinstance(norm, NormRelu)]
        shares = layers.reduce_weight().split(self.widths)
        folded = [norm.folded(share) for norm, share in zip(norms, shares, strict=True)]
        self.known = FoldedProduct(
            torch.cat([weight for weight, _ in folded]), torch.cat([bias for _, bias in folded])
        )
        for j, (norm, weight) in enumerate(zip(norms[1:], layers.reduce_own, strict=True)):
            self.register_buffer(f"own_{j + 1}", norm.folded(weight)[0])
        last = len(self.widths) - 1
        self.convs = nn.ModuleList(
            FoldedConv(*norm.folded(conv), stride=layers.stride if j == last else 1, padding=1)
            for j, (norm, conv) in enumerate(zip(conv_norms, layers.convs, strict=True))
        )
        self.is_down = layers.stride == 2

    def forward(self, canvas: Canvas) -> Tensor | None:
        """Append each layer's channels; give those of a down block's last layer instead."""
        reduced = self.known(canvas).split(self.widths, dim=1)
        own: list[Tensor] = []
        last = len(self.widths) - 1
        for j, (share, conv) in enumerate(zip(reduced, self.convs, strict=True)):
            features = _as_features(share, canvas.size)
            if j:
                # As a product this would be a narrow one between far-apart pixels: slow.
                reduced_own = conv1x1(torch.cat(own, dim=1), getattr(self, f"own_{j}"))
                features = reduced_own.add_(features)
            new = conv(features.clamp_min(0)).relu_()
            if j == last and self.is_down:
                return new
            own.append(new)
            canvas.append(new)
        return None


class FoldedBelow(nn.Module):
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
            self.product = FoldedProduct(
                *(torch.cat(pair) for pair in zip(lateral, compress, strict=True))
            )
        else:
            self.reduce = FoldedProduct(*lateral)
            self.compress = FoldedProduct(*compress)
        weight, groups = laterals.conv_weight()
        self.conv = FoldedConv(*laterals.conv_norm.folded(weight), padding=1, groups=groups)

    def forward(self, below: tuple[Canvas, ...]) -> tuple[Tensor, Tensor]:
        """Map what the block below passed up to lateral and compressed channels."""
        if self.is_one:
            reduced, compressed = self.product(below[0]).tensor_split((self.num_reduced,), dim=1)
        else:
            reduced, compressed = self.reduce(below[0]), self.compress(below[-1])
        lateral = self.conv(_as_features(reduced.clamp_min(0), below[0].size)).relu_()
        return lateral, _as_features(compressed.clamp_min(0), below[-1].size)


class FoldedBlock(nn.Module):
    """A normal or fusion block on a canvas."""

    def __init__(self, block: DenseBlock | FusionBlock, plan: BlockPlan, room: int) -> None:
        """Fold a block whose output needs a canvas of `room` channels."""
        super().__init__()
        self.below = FoldedBelow(block) if isinstance(block, FusionBlock) else None
        self.layers = FoldedDenseLayers(block.layers)
        self.transition = (
            FoldedProduct(*block.transition.norm.folded(block.transition.weight))
            if isinstance(block.transition, ConvNormRelu)
            else None
        )
        self.lateral_channels = plan.lateral_channels
        self.room = room
        self.smaller_room = plan.gathered_channels if self.transition else room

    def forward(
        self, canvas: Canvas, below: tuple[Canvas, ...] = ()
    ) -> tuple[Canvas, tuple[Canvas, ...]]:
        """Grow the canvas by this block; give it and what is passed up."""
        passed_up: tuple[Canvas, ...] = ()
        compressed = None
        late = None
        if self.below is not None:
            lateral, compressed = self.below(below)
            if self.layers.is_down:
                lateral, late = lateral.tensor_split((-self.lateral_channels,), dim=1)
            canvas.append(resize(lateral, canvas.size))
        newest = self.layers(canvas)
        if newest is not None:
            assert late is not None
            size = newest.shape[-2:]
            passed_up = (canvas.as_far_as(canvas.used),)
            smaller = Canvas.empty(canvas.data, size, self.smaller_room)
            smaller.append(resize(canvas.features, size))
            smaller.append(resize(late, size))
            smaller.append(newest)
            canvas = smaller
        passed_up = (*passed_up, canvas.as_far_as(canvas.used))
        if compressed is not None:
            canvas.append(resize(compressed, canvas.size))
        if self.transition is not None:
            kept = self.transition(canvas)
            canvas = Canvas.empty(canvas.data, canvas.size, self.room)
            canvas.append(_as_features(kept, canvas.size))
        return canvas, passed_up


class FoldedExit(nn.Module):
    """`Exit` on a canvas."""

    def __init__(self, exit_: Exit) -> None:
        super().__init__()
        convs = [conv for conv in exit_.reduce if isinstance(conv, ConvNormRelu)]
        self.reduce = nn.ModuleList(FoldedConv.of(conv) for conv in convs)
        self.classify = copy.deepcopy(exit_.classify)

    def forward(self, canvas: Canvas) -> Tensor:
        """Map the features of a canvas to logits (batch, classes)."""
        features = canvas.features.contiguous(memory_format=torch.channels_last)
        for conv in self.reduce:
            features = conv(features).relu_()
        return self.classify(F.avg_pool2d(features, 2).flatten(1))


def _as_features(pixels: Tensor, size: torch.Size) -> Tensor:
    """View (pixels of all images, channels) as (batch, channels, height, width)."""
    return pixels.unflatten(0, (-1, *size)).permute(0, 3, 1, 2)


def fold_step(step: nn.Module) -> nn.Module:
    """Give the inference form of one step of the stem."""
    if isinstance(step, LargeStemStep):
        weight, bias = step.norm.folded(step.conv.weight, step.conv.bias)
        conv = FoldedConv(weight, bias, stride=2, padding=3)
        return nn.Sequential(conv, nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1))
    assert isinstance(step, ConvNormRelu)
    return nn.Sequential(FoldedConv.of(step), nn.ReLU(inplace=True))


class FoldedSubNetwork(nn.Module):
    """The blocks and exits of one scale on canvases."""

    def __init__(
        self, blocks: nn.ModuleList, exits: nn.ModuleList, plans: tuple[BlockPlan, ...]
    ) -> None:
        super().__init__()
        rooms = _rooms(plans)
        self.room = rooms[0]
        self.blocks = nn.ModuleList(
            FoldedBlock(block, plan, room)
            for block, plan, room in zip(blocks, plans, rooms[1:], strict=True)
            if isinstance(block, DenseBlock | FusionBlock)
        )
        self.exits = nn.ModuleList(FoldedExit(exit_) for exit_ in exits if isinstance(exit_, Exit))

    def begin(self, base: Tensor) -> Canvas:
        """Put base features (batch, channels, height, width) on a canvas."""
        canvas = Canvas.empty(base, base.shape[-2:], self.room)
        canvas.append(base)
        return canvas


def _rooms(plans: tuple[BlockPlan, ...]) -> list[int]:
    """Channels for which the canvas given to each block, and that behind the last, needs room."""
    rooms = [plans[-1].out_channels]
    for plan in reversed(plans):
        if plan.is_down:
            last_layer = plan.lateral_channels + plan.units[-1].out_channels
            rooms.append(plan.dense_channels - last_layer)
        else:
            rooms.append(plan.gathered_channels if plan.transition_channels else rooms[-1])
    return rooms[::-1]
