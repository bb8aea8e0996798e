"""Frozen, validated settings of a network and of its training."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ranet.architecture import make_network_spec
from ranet.checks import check_choices, check_range

ExitEnsemble = Literal["none", "mean_logits"]
"""none: an exit predicts from its own logits; mean_logits: from the mean of the logits of this exit
and all earlier exits."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a RANet: one sub-network per scale, lowest resolution first.

    The defaults are the CIFAR network of the paper's curve without its repeated top scale.
    `__post_init__` calls `ranet.architecture.make_network_spec`, which rejects sizes that do not
    fit together.
    """

    scales: tuple[int, ...] = (1, 2, 3)
    """Scale of each sub-network; scale 1 has the lowest resolution."""
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
    """Additional blocks of each further sub-network."""
    compress_factor: float = 0.25
    """Share of a fusion layer's new channels that comes from the lower sub-network."""
    reduction: float = 0.5
    """Share of the channels that a transition layer keeps."""
    stem: Literal["small", "large"] = "small"
    """small: 3x3 convolution, stride 1; large: 7x7 convolution, stride 2, then 3x3 max pooling."""
    exit_channels: int | None = 128
    """Channels inside an exit; null: the channels of its input features."""
    image_size: int = 32
    """Height and width of an image, in pixels."""
    num_classes: int = 10
    """Number of classes."""

    def __post_init__(self) -> None:
        # Sequences from YAML arrive as lists; a frozen config must be hashable.
        for name in ("scales", "growth_factors", "bottleneck_factors"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.scales or self.scales[0] != 1 or self.scales != tuple(sorted(self.scales)):
            raise ValueError(
                f"model.scales must start at 1 and never decrease, got {self.scales}: "
                "each sub-network reads the features of the previous one"
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
                "the input of a block's last layer is read by the next sub-network"
            )
        if self.extra_blocks < 1 and len(self.scales) > 1:
            raise ValueError(
                f"model.extra_blocks must be 1 or more, got {self.extra_blocks}: "
                "a sub-network without blocks of its own has no exit"
            )
        for name in ("compress_factor", "reduction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"model.{name} must be above 0 and below 1, got {getattr(self, name)}"
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
    """Stochastic gradient descent with its learning rate; the defaults are the paper's."""

    lr: float = 0.1
    """Learning rate at the start of the schedule, for the whole (global) batch."""
    momentum: float = 0.9
    """Momentum of SGD."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    weight_decay: float = 1e-4
    """Weight decay (L2 penalty added to the gradient)."""
    decay: Literal["all", "weights"] = "all"
    """all: every parameter, as in the paper; weights: neither batch norm parameters nor biases."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """multistep: multiply by gamma at each milestone; cosine: decrease to 0, step by step."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Points at which the learning rate drops, as shares of all epochs (multistep only)."""
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
                "train.optim.milestones must be increasing shares of all epochs between 0 and 1, "
                f"got {self.milestones}"
            )
        if not 0 < self.gamma <= 1:
            raise ValueError(f"train.optim.gamma must be in (0, 1], got {self.gamma}")


EVALUATION_IMAGES = 128
"""Images per forward pass of an evaluation, where no micro-batch size is set."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Training loss: weighted sum of the cross-entropy of every exit."""

    label_smoothing: float = 0.0
    """Share of the target probability that is distributed evenly over all classes."""
    exit_weights: tuple[float, ...] = ()
    """Weight of each exit's loss, first exit first; empty: 1 for every exit, as in the paper."""
    curriculum: float = 0.0
    """Linear curriculum over the exit weights, -1 to 1: +1 starts with the first exit at twice its
    weight and the last exit at 0, -1 is the reverse; the weights reach exit_weights at the last
    step. 0: constant weights."""

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
    """EMA decay of the weights per step; the EMA is evaluated and registered in place of the
    weights. 0: no EMA."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"train.ema.decay must be in [0, 1), got {self.decay}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training of a network; the defaults are the paper's CIFAR recipe."""

    epochs: int = 300
    """Number of passes over the training images."""
    batch_size: int = 64
    """Images per step, over all workers (global batch size)."""
    micro_batch_size: int = 0
    """Images per forward pass on one worker (gradient accumulation). 0: the worker's whole share
    of the batch."""
    checkpoint_every_steps: int = 0
    """Steps between two checkpoints within an epoch; each epoch also ends with a checkpoint. If an
    epoch has fewer steps, checkpoints follow only the epochs that pass a multiple of this number,
    and the last epoch. 0: one checkpoint after each epoch."""
    seed: int = 0
    """Seed of the weights, the image order and the augmentation."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Data type of the forward pass; bfloat16 uses autocast, the weights stay float32."""
    gradient_precision: Literal["float32", "bfloat16"] = "float32"
    """Data type in which workers exchange gradients; bfloat16 halves the traffic and rounds the
    gradients."""
    channels_last: bool = True
    """Use the channels-last memory format for images and features."""
    compile: bool = False
    """Compile the forward pass of training with torch.compile; compilation takes minutes per image
    size."""
    progressive_sizes: tuple[int, ...] = ()
    """Image sizes of training (height and width), in pixels, in this order, for equal shares of the
    epochs; evaluation always uses model.image_size. Empty: model.image_size."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Training loss of the exits."""
    ema: EmaConfig = field(default_factory=EmaConfig)
    """Exponential moving average of the weights."""
    select_by: Literal["last_exit", "mean_exit"] = "last_exit"
    """Validation top-1 that selects the best epoch: of the last exit, or the mean over exits."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and learning rate."""

    @property
    def evaluation_batch_size(self) -> int:
        """Images per forward pass of evaluation and scoring on one worker."""
        return self.micro_batch_size or EVALUATION_IMAGES

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
                f"train.progressive_sizes must be 1 or more pixels, at most one size per epoch "
                f"({self.epochs}), got {self.progressive_sizes}"
            )
        if self.optim.warmup_epochs >= self.epochs:
            raise ValueError(
                f"train.optim.warmup_epochs must be below train.epochs ({self.epochs}), "
                f"got {self.optim.warmup_epochs}"
            )
