"""Architecture of a network: channels, resolutions and mult-adds, computed without torch.

All code that builds, loads, costs or skips a part of the network reads this specification.
Source: Yang et al., CVPR 2020 (arXiv:2003.07326), section 3, and the behaviour of the network
its authors published.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ranet.config import ModelConfig


@dataclass(frozen=True)
class Cost:
    """Cost of a part of the network for one image."""

    mult_adds: int = 0
    """Multiply-accumulates of convolutions and linear layers."""
    official_ops: int = 0
    """The authors' count: also biases of linear layers, ReLU elements and pooling windows."""

    def __add__(self, other: Cost) -> Cost:
        """Add both counts."""
        return Cost(self.mult_adds + other.mult_adds, self.official_ops + other.official_ops)


def _conv_cost(in_channels: int, out_channels: int, kernel: int, size: int) -> Cost:
    """Cost of a convolution and its ReLU with a square output."""
    mult_adds = in_channels * out_channels * kernel * kernel * size * size
    return Cost(mult_adds, mult_adds + out_channels * size * size)


def _halved(size: int) -> int:
    """Output size of a padded stride-2 convolution with an odd kernel."""
    return (size + 1) // 2


@dataclass(frozen=True)
class StemSpec:
    """Stem step that computes the base features of one sub-network."""

    in_channels: int
    out_channels: int
    in_size: int
    size: int
    """Height and width of the features."""
    is_large: bool
    """True: 7x7 convolution with stride 2, then max pooling; false: one 3x3 convolution."""

    @property
    def stride(self) -> int:
        """Stride of the convolution."""
        return 1 if self.size == self.in_size else 2

    @property
    def cost(self) -> Cost:
        """Cost of this step."""
        if not self.is_large:
            return _conv_cost(self.in_channels, self.out_channels, 3, self.size)
        pooled = Cost(0, self.out_channels * 3 * 3 * self.size * self.size)
        return _conv_cost(self.in_channels, self.out_channels, 7, _halved(self.in_size)) + pooled


@dataclass(frozen=True)
class UnitSpec:
    """Bottleneck unit: 1x1 convolution to `width` channels, 3x3 to `out_channels`."""

    in_channels: int
    width: int
    out_channels: int

    def cost(self, in_size: int, out_size: int) -> Cost:
        """Cost of the unit for these input and output sizes."""
        return _conv_cost(self.in_channels, self.width, 1, in_size) + _conv_cost(
            self.width, self.out_channels, 3, out_size
        )


@dataclass(frozen=True)
class LateralSpec:
    """Lateral path from a lower block to a fusion block."""

    units: tuple[UnitSpec, ...]
    """Unit j reads the input of layer j of the lower block, at the lower block's `in_size`."""
    in_channels: int
    """Output channels of the last layer of the lower block."""
    compressed_channels: int
    """Output channels of the 1x1 convolution that compresses `in_channels`."""
    in_size: int
    out_size: int

    @property
    def cost(self) -> Cost:
        """Cost of the lateral path, which runs at the lower resolution."""
        total = _conv_cost(self.in_channels, self.compressed_channels, 1, self.out_size)
        for unit in self.units:
            total += unit.cost(self.in_size, self.in_size)
        return total


@dataclass(frozen=True)
class ExitSpec:
    """Exit: two stride-2 3x3 convolutions, 2x2 average pooling, a linear layer."""

    in_channels: int
    hidden_channels: int
    num_classes: int
    in_size: int

    @property
    def cost(self) -> Cost:
        """Cost of the exit, without the blocks before the exit."""
        once = _halved(self.in_size)
        twice = _halved(once)
        linear = self.hidden_channels * self.num_classes
        pooled = self.hidden_channels * 2 * 2
        return (
            _conv_cost(self.in_channels, self.hidden_channels, 3, once)
            + _conv_cost(self.hidden_channels, self.hidden_channels, 3, twice)
            + Cost(linear, pooled + linear + self.num_classes)
        )


@dataclass(frozen=True)
class BlockSpec:
    """Block: dense layers, lateral path, transition and exit."""

    units: tuple[UnitSpec, ...]
    """One unit per layer; computes the channels that the layer adds, without lateral ones."""
    lower: LateralSpec | None
    """Lateral path from the lower sub-network; None in a normal block."""
    in_size: int
    """Height and width of the input features and of the features between layers."""
    out_size: int
    """Height and width of the output features; half of `in_size` in a down block."""
    transition_channels: int | None
    """Output channels of the transition; None without a transition."""
    exit: ExitSpec | None
    """Exit on the block's output; None in a fusion block."""

    @property
    def in_channels(self) -> int:
        """Channels of the input features."""
        return self.units[0].in_channels

    @property
    def is_down(self) -> bool:
        """Return whether the last layer halves the resolution."""
        return self.out_size != self.in_size

    @property
    def lateral_channels(self) -> int:
        """Lateral channels that each layer receives from the lower sub-network."""
        return self.lower.units[0].out_channels if self.lower else 0

    @property
    def dense_channels(self) -> int:
        """Channels after the last layer."""
        last = self.units[-1]
        return last.in_channels + self.lateral_channels + last.out_channels

    @property
    def gathered_channels(self) -> int:
        """Input channels of the transition: dense and compressed channels."""
        return self.dense_channels + (self.lower.compressed_channels if self.lower else 0)

    @property
    def out_channels(self) -> int:
        """Channels of the block's output."""
        return self.transition_channels or self.gathered_channels

    @property
    def cost(self) -> Cost:
        """Cost of the block without its exit."""
        total = self.lower.cost if self.lower else Cost()
        for unit in self.units[:-1]:
            total += unit.cost(self.in_size, self.in_size)
        total += self.units[-1].cost(self.in_size, self.out_size)
        if self.transition_channels:
            total += _conv_cost(self.gathered_channels, self.transition_channels, 1, self.out_size)
        return total


@dataclass(frozen=True)
class NetworkSpec:
    """Specification of a whole network."""

    stem: tuple[StemSpec, ...]
    """Stem step of each sub-network, lowest resolution first; steps run last to first."""
    subnetworks: tuple[tuple[BlockSpec, ...], ...]
    """Blocks of each sub-network, in execution order."""

    @property
    def blocks(self) -> Iterable[BlockSpec]:
        """All blocks, in execution order."""
        return (block for blocks in self.subnetworks for block in blocks)

    @property
    def num_norms(self) -> int:
        """Number of batch norms, one after every convolution."""
        number = len(self.stem)
        for block in self.blocks:
            number += 2 * len(block.units) + (block.transition_channels is not None)
            number += 2 * len(block.lower.units) + 1 if block.lower else 0
            number += 2 if block.exit else 0
        return number

    @property
    def exit_costs(self) -> tuple[Cost, ...]:
        """Cumulative cost from the image to each exit, earlier exits included."""
        total = Cost()
        for step in self.stem:
            total += step.cost
        costs = []
        for block in self.blocks:
            total += block.cost
            if block.exit:
                total += block.exit.cost
                costs.append(total)
        return tuple(costs)


@lru_cache(maxsize=64)
def make_network_spec(config: ModelConfig) -> NetworkSpec:
    """Compute the specification of a network from its configuration.

    Raises:
        ValueError: the settings contradict each other: a feature map is too small or too large
            for its exit, or a layer would add no channels.
    """
    sizes = _stem_sizes(config)
    channels = [config.stem_channels * factor for factor in config.growth_factors]
    top = len(channels) - 1
    stem = tuple(
        StemSpec(
            in_channels=3 if i == top else channels[i + 1],
            out_channels=channels[i],
            in_size=config.image_size if i == top else sizes[i + 1],
            size=sizes[i],
            is_large=i == top and config.stem == "large",
        )
        for i in range(len(channels))
    )
    subnetworks: list[tuple[BlockSpec, ...]] = []
    for i in range(len(channels)):
        lower = subnetworks[-1] if subnetworks else ()
        subnetworks.append(_subnetwork_spec(config, i, channels[i], sizes[i], lower))
    return NetworkSpec(stem=stem, subnetworks=tuple(subnetworks))


def _stem_sizes(config: ModelConfig) -> list[int]:
    """Height and width of each sub-network's base features, lowest scale first."""
    size = config.image_size
    if config.stem == "large":
        size = _halved(_halved(size))
    sizes = [size]
    for scale, above in zip(config.scales[-2::-1], config.scales[:0:-1], strict=True):
        # The stem halves the size only once between neighbours, however far apart their scales.
        size = _halved(size) if scale != above else size
        sizes.append(size)
    return sizes[::-1]


def _subnetwork_spec(
    config: ModelConfig, i: int, channels: int, size: int, lower: tuple[BlockSpec, ...]
) -> tuple[BlockSpec, ...]:
    """Compute the blocks of sub-network i, counted from 0."""
    scale = config.scales[i]
    lengths = [config.num_blocks + config.extra_blocks * k for k in range(i + 1)]
    transitions = {t * lengths[i] // scale for t in range(1, scale)}
    # For a repeated scale 1 this slice is the whole list, as it is in the authors' network.
    downs = [0, *lengths[:i]][-(scale - 1) :]
    blocks: list[BlockSpec] = []
    for number in range(1, lengths[i] + 1):
        lower_block = lower[number - 1] if number <= len(lower) else None
        position = _Position(
            subnetwork=i,
            lower=lower_block,
            in_channels=channels,
            in_size=size,
            num_layers=config.layers_per_block * (number if config.layer_mode == "linear" else 1),
            is_down=lower_block is not None and number in downs,
            has_transition=number in transitions,
        )
        block = _block_spec(config, position)
        blocks.append(block)
        channels, size = block.out_channels, block.out_size
    return tuple(blocks)


@dataclass(frozen=True)
class _Position:
    """Position of a block in the network, from which its specification follows."""

    subnetwork: int
    """Index of the sub-network, from 0."""
    lower: BlockSpec | None
    """Block of the lower sub-network that a fusion block reads; None in a normal block."""
    in_channels: int
    in_size: int
    num_layers: int
    is_down: bool
    has_transition: bool


def _block_spec(config: ModelConfig, at: _Position) -> BlockSpec:
    """Compute the specification of one block.

    Raises:
        ValueError: a layer would have no channels, or an exit features of the wrong size.
    """
    growth = config.growth_rate * config.growth_factors[at.subnetwork]
    lateral = int(config.compress_factor * growth) if at.lower else 0
    own = growth - lateral
    if at.lower and min(lateral, own) < 1:
        raise ValueError(
            f"model.compress_factor ({config.compress_factor}) must leave at least one of the "
            f"{growth} channels that a layer of sub-network {at.subnetwork + 1} adds as own "
            f"channels and one as a lateral channel, got {own} and {lateral}; raise "
            "model.growth_rate or change model.compress_factor"
        )
    width = config.bottleneck_factors[at.subnetwork]
    inputs = [at.in_channels + j * growth for j in range(at.num_layers)]
    dense_channels = at.in_channels + at.num_layers * growth
    lower = _lateral_spec(config, at, lateral, dense_channels) if at.lower else None
    gathered = dense_channels + (lower.compressed_channels if lower else 0)
    transition = int(config.reduction * gathered) if at.has_transition else None
    if transition == 0 or (lower and lower.compressed_channels == 0):
        raise ValueError(
            f"model.stem_channels ({config.stem_channels}) and model.growth_rate "
            f"({config.growth_rate}) are too small: a 1x1 convolution of sub-network "
            f"{at.subnetwork + 1} would have no output channels"
        )
    out_size = _halved(at.in_size) if at.is_down else at.in_size
    return BlockSpec(
        units=tuple(UnitSpec(n, min(n, width * own), own) for n in inputs),
        lower=lower,
        in_size=at.in_size,
        out_size=out_size,
        transition_channels=transition,
        exit=None if at.lower else _exit_spec(config, at, transition or gathered, out_size),
    )


def _lateral_spec(
    config: ModelConfig, at: _Position, lateral: int, dense_channels: int
) -> LateralSpec:
    """Compute the lateral path to a fusion block.

    Args:
        config: shape of the network.
        at: position of the fusion block.
        lateral: channels that each layer receives.
        dense_channels: channels after the last layer of the fusion block.
    """
    assert at.lower is not None
    # Lateral units have the bottleneck width of the lower sub-network.
    width = config.bottleneck_factors[at.subnetwork - 1] * lateral
    growth = config.growth_rate * config.growth_factors[at.subnetwork - 1]
    inputs = [at.lower.in_channels + j * growth for j in range(at.num_layers)]
    return LateralSpec(
        units=tuple(UnitSpec(n, min(n, width), lateral) for n in inputs),
        in_channels=at.lower.dense_channels,
        compressed_channels=int(config.compress_factor * dense_channels),
        in_size=at.lower.in_size,
        out_size=at.lower.out_size,
    )


def _exit_spec(config: ModelConfig, at: _Position, in_channels: int, size: int) -> ExitSpec:
    """Compute the exit on features of this size."""
    if _halved(_halved(size)) // 2 != 1:
        raise ValueError(
            f"model.image_size {config.image_size} gives the exits of sub-network "
            f"{at.subnetwork + 1} feature maps of {size} x {size}; an exit needs 5 to 12 pixels "
            "per side: change model.image_size, model.scales or model.stem"
        )
    return ExitSpec(
        in_channels=in_channels,
        hidden_channels=config.exit_channels or in_channels,
        num_classes=config.num_classes,
        in_size=size,
    )


def mult_adds(config: ModelConfig) -> tuple[int, ...]:
    """Cumulative mult-adds per image to each exit, earlier exits included."""
    return tuple(cost.mult_adds for cost in make_network_spec(config).exit_costs)


def official_ops(config: ModelConfig) -> tuple[int, ...]:
    """Cumulative cost per image to each exit by the authors' counting method.

    The authors also count biases of linear layers, ReLU elements and pooling windows.
    """
    return tuple(cost.official_ops for cost in make_network_spec(config).exit_costs)
