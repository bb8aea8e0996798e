"""Settings of the network and of its training: frozen, checked when they are made."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ranet.architecture import make_network_spec
from ranet.checks import check_choices, check_range


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a RANet: one sub-network per scale, lowest resolution first.

    The defaults are the CIFAR network of the paper's curve without its repeated top scale.
    Sizes that do not fit together are refused by `ranet.architecture.make_network_spec`, which
    `__post_init__` calls.
    """

    scales: tuple[int, ...] = (1, 2, 3)
    """Scale of each sub-network; scale 1 is the lowest resolution."""
    growth_rate: int = 6
    """Channels that one dense layer adds, before the growth factor of its sub-network."""
    growth_factors: tuple[int, ...] = (4, 2, 1)
    """Multiplier of all channel counts, one per sub-network."""
    bottleneck_factors: tuple[int, ...] = (4, 2, 1)
    """Width of the 1x1 bottleneck in units of the channels its layer adds, one per sub-network."""
    stem_channels: int = 16
    """Channels of the stem at the highest resolution, before the growth factor."""
    layers_per_block: int = 4
    """Dense layers in a block; in the first block where `layer_mode` is linear."""
    layer_mode: Literal["even", "linear"] = "even"
    """even: every block has layers_per_block layers; linear: block b has b times as many."""
    num_blocks: int = 2
    """Blocks of the first sub-network."""
    extra_blocks: int = 2
    """Blocks that each further sub-network has more than the one before."""
    compress_factor: float = 0.25
    """Share of a fusion layer's new channels that comes from the sub-network below."""
    reduction: float = 0.5
    """Share of the channels that a transition keeps."""
    stem: Literal["small", "large"] = "small"
    """small: 3x3 convolution, stride 1; large: 7x7 convolution, stride 2, then 3x3 max pooling."""
    exit_channels: int | None = 128
    """Channels inside an exit; null: as many as the features it reads."""
    image_size: int = 32
    """Height and width of an image, in pixels."""
    num_classes: int = 10
    """Classes to tell apart."""

    def __post_init__(self) -> None:
        # Sequences from YAML arrive as lists; a frozen config must be hashable.
        for name in ("scales", "growth_factors", "bottleneck_factors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.scales or self.scales[0] != 1 or self.scales != tuple(sorted(self.scales)):
            raise ValueError(
                f"model.scales must start at 1 and never fall, got {self.scales}: "
                "each sub-network reads the features of the one before"
            )
        for name in ("growth_factors", "bottleneck_factors"):
            factors = getattr(self, name)
            if len(factors) != len(self.scales):
                raise ValueError(
                    f"model.{name} must have one entry per scale: got {len(factors)} entries "
                    f"{factors} for {len(self.scales)} scales {self.scales}"
                )
            if min(factors) < 1:
                raise ValueError(f"model.{name} must all be 1 or more, got {factors}")
        positive = ("growth_rate", "stem_channels", "num_blocks", "image_size", "num_classes")
        check_range(self, "model", **dict.fromkeys(positive, (1, None)))
        check_choices(self, "model")
        if self.layers_per_block < 2:
            raise ValueError(
                f"model.layers_per_block must be 2 or more, got {self.layers_per_block}: "
                "a block hands the input of its last layer to the sub-network above"
            )
        if self.extra_blocks < 1 and len(self.scales) > 1:
            raise ValueError(
                f"model.extra_blocks must be 1 or more, got {self.extra_blocks}: "
                "a sub-network without blocks of its own has no exit"
            )
        for name in ("compress_factor", "reduction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"model.{name} must lie between 0 and 1, got {getattr(self, name)}"
                )
        if self.exit_channels is not None and self.exit_channels < 1:
            raise ValueError(
                f"model.exit_channels must be 1 or more, or null, got {self.exit_channels}"
            )
        make_network_spec(self)

    @property
    def num_exits(self) -> int:
        """Number of exits: one per block of the last, longest sub-network."""
        return self.num_blocks + self.extra_blocks * (len(self.scales) - 1)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Stochastic gradient descent and its learning rate; the defaults are the paper's."""

    lr: float = 0.1
    """Learning rate at the start of the schedule, for the whole (global) batch."""
    momentum: float = 0.9
    """Momentum of the gradient."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    weight_decay: float = 1e-4
    """L2 penalty, added to the gradient."""
    decay: Literal["all", "weights"] = "all"
    """all: decay every parameter, as the paper does; weights: neither batch norms nor biases."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """multistep: multiply by gamma at each milestone; cosine: fall to 0, changed every step."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Where the learning rate falls, as shares of all epochs (multistep only)."""
    gamma: float = 0.1
    """Factor applied to the learning rate at a milestone (multistep only)."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises from 0 to lr, step by step."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        check_choices(self, "train.optim")
        check_range(self, "train.optim", weight_decay=(0, None), warmup_epochs=(0, None))
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"train.optim.lr must be above 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"train.optim.momentum must be in [0, 1), got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("train.optim.nesterov needs train.optim.momentum above 0, got 0")
        if any(not 0 < share < 1 for share in self.milestones) or self.milestones != tuple(
            sorted(self.milestones)
        ):
            raise ValueError(
                "train.optim.milestones must be rising shares of all epochs between 0 and 1, "
                f"got {self.milestones}"
            )
        if not 0 < self.gamma <= 1:
            raise ValueError(f"train.optim.gamma must be in (0, 1], got {self.gamma}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Loss of a training step: cross-entropy of every exit, weighted and summed."""

    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    exit_weights: tuple[float, ...] = ()
    """Weight of each exit's loss, first exit first; empty: 1 for every exit, as the paper does."""
    curriculum: float = 0.0
    """How far training begins with the early exits: at 1 the first exit's weight begins doubled and
    the last one's at 0, those between on the line; at -1 the other way round. Every step brings the
    weights nearer to exit_weights, which the last one has. 0: the same weights throughout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "exit_weights", tuple(self.exit_weights))
        check_range(self, "train.loss", curriculum=(-1, 1))
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"train.loss.label_smoothing must be in [0, 1), got {self.label_smoothing}"
            )
        if any(not (w >= 0 and math.isfinite(w)) for w in self.exit_weights) or (
            self.exit_weights and not any(self.exit_weights)
        ):
            raise ValueError(
                f"train.loss.exit_weights must be 0 or more and not all 0, got {self.exit_weights}"
            )


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average (EMA) of the weights over training steps."""

    decay: float = 0.0
    """Share of itself that the moving average of the weights keeps at a step; the average is then
    what is evaluated and registered. 0: no average."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"train.ema.decay must be in [0, 1), got {self.decay}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained; the defaults are the paper's CIFAR recipe."""

    epochs: int = 300
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step, over all workers together, however many there are."""
    micro_batch_size: int = 0
    """Images that a worker takes through the network at once, so that its part of a batch fits into
    its memory; gradients are added up. 0: its whole part."""
    checkpoint_every_steps: int = 0
    """Steps between two checkpoints within an epoch; one more follows each epoch. If an epoch has
    fewer steps, only those epochs have one that reach so many more, and the last. 0: one after
    each epoch."""
    seed: int = 0
    """Seed of the weights, of the image order and of the augmentation."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the forward pass; bfloat16 is autocast, the weights stay float32."""
    channels_last: bool = True
    """Keep images and features channels last in memory."""
    compile: bool = False
    """Compile the training step with torch.compile: minutes at the start, and again for each
    image size."""
    progressive_sizes: tuple[int, ...] = ()
    """Height and width of the training images, in pixels: each for an equal share of the epochs,
    in this order; empty: model.image_size, as evaluation always has."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Training loss of the exits."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Exponential moving average of the weights."""
    select_by: Literal["last_exit", "mean_exit"] = "last_exit"
    """Validation top-1 that chooses the best epoch: the last exit's, or the mean over exits."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and learning rate."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "progressive_sizes", tuple(self.progressive_sizes))
        check_choices(self, "train")
        check_range(
            self,
            "train",
            epochs=(1, None),
            batch_size=(1, None),
            micro_batch_size=(0, None),
            checkpoint_every_steps=(0, None),
            seed=(0, 2**63 - 1),
        )
        if min(self.progressive_sizes, default=1) < 1 or len(self.progressive_sizes) > self.epochs:
            raise ValueError(
                f"train.progressive_sizes must be 1 or more pixels, at most one size an epoch "
                f"({self.epochs}), got {self.progressive_sizes}"
            )
        if self.optim.warmup_epochs >= self.epochs:
            raise ValueError(
                f"train.optim.warmup_epochs must be below train.epochs ({self.epochs}), "
                f"got {self.optim.warmup_epochs}"
            )

    @property
    def epoch_sizes(self) -> tuple[int, ...]:
        """Height and width of the training images of every epoch; empty: model.image_size."""
        num_sizes = len(self.progressive_sizes)
        return tuple(
            self.progressive_sizes[epoch * num_sizes // self.epochs]
            for epoch in range(self.epochs if num_sizes else 0)
        )

    def is_checkpoint_due(self, epoch: int, step: int, steps_per_epoch: int) -> bool:
        """Say whether a checkpoint belongs after so many epochs, and steps of the next one."""
        every = self.checkpoint_every_steps
        if step:
            return every > 0 and step % every == 0
        return (
            not every or epoch == self.epochs or epoch * steps_per_epoch % every < steps_per_epoch
        )
