"""The network: sub-networks over one stem, exits behind their blocks."""

import copy
from collections import deque
from collections.abc import Collection, Generator

import torch
from torch import Tensor, nn

from ranet.config import ModelConfig
from ranet.model.blocks import DenseBlock, FusionBlock, PassedUp
from ranet.model.exit import Exit
from ranet.model.folded import fold
from ranet.model.stem import Stem
from ranet.plan import BlockPlan, make_plan


class SubNetwork(nn.Module):
    """The blocks of one scale, and the exits behind its last ones."""

    def __init__(self, plans: tuple[BlockPlan, ...], below: tuple[BlockPlan, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            FusionBlock(plan, below[k]) if plan.lower else DenseBlock(plan)
            for k, plan in enumerate(plans)
        )
        self.exits = nn.ModuleList(Exit(plan.exit) for plan in plans if plan.exit)

    def exit_after(self, k: int) -> Exit | None:
        """Exit behind block k (counted from 0); None behind a fusion block."""
        number = k - (len(self.blocks) - len(self.exits))
        return self.exits[number] if number >= 0 else None  # type: ignore[return-value]


class Network(nn.Module):
    """How images run through stem, blocks and exits, whatever form those have."""

    def __init__(self, config: ModelConfig, stem: nn.Module, subnetworks: nn.ModuleList) -> None:
        super().__init__()
        self.config = config
        self.stem = stem
        self.subnetworks = subnetworks

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (exits, batch, classes)."""
        return torch.stack(list(self.predictions(images)))

    def predictions(
        self, images: Tensor, skip: Collection[int] = ()
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yield logits (images, classes) of each exit, cheapest first; lazily.

        Nothing behind an exit is computed before the next value is asked for, so to stop early
        is to stop reading. A reader that is done with some images may send the indices of the
        others, (kept,) int64 and rising, within the images of the logits just read: the rest is
        then computed for those alone.

        Args:
            images: (batch, 3, height, width), normalised.
            skip: exits, counted from 1, that are neither computed nor yielded.
        """
        number = 0
        kept = None  # indices into `images` of those that go on; None: all
        bases = self.stem(images)
        below: deque[_Cached] = deque()
        for subnetwork in self.subnetworks:
            assert isinstance(subnetwork, SubNetwork)
            features = take(bases.pop(0), kept)
            passed_up: deque[_Cached] = deque()
            for k, block in enumerate(subnetwork.blocks):
                lower = below.popleft().take(kept) if below else ()
                features, up = block(features, lower)
                if bases:  # a sub-network follows
                    passed_up.append(_Cached(up, kept))
                exit_ = subnetwork.exit_after(k)
                if exit_ is None:
                    continue
                number += 1
                if number in skip:
                    continue
                keep = yield exit_(features)
                if keep is not None:
                    features = take(features, keep)
                    kept = keep if kept is None else kept[keep]
            below = passed_up


class RANet(Network):
    """Resolution Adaptive Network: cheap low-resolution exits first, the rest only on demand.

    Yang et al., CVPR 2020 (arXiv:2003.07326); computes the authors' network exactly.
    """

    batches_tracked: Tensor
    """Training batches that each batch norm of the authors' network has seen, in their order."""

    def __init__(self, config: ModelConfig) -> None:
        plan = make_plan(config)
        below = ((), *plan.subnetworks)
        subnetworks = nn.ModuleList(
            SubNetwork(blocks, lower)
            for blocks, lower in zip(plan.subnetworks, below, strict=False)
        )
        super().__init__(config, Stem(plan.stem), subnetworks)
        self.register_buffer("batches_tracked", torch.zeros(plan.num_norms, dtype=torch.int64))

    def predictions(
        self, images: Tensor, skip: Collection[int] = ()
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yield logits of each exit, as `Network.predictions` does; count training batches."""
        if self.training:
            self.batches_tracked += 1
        return super().predictions(images, skip)

    def optimized(self, dtype: torch.dtype | None = None) -> "OptimizedRANet":
        """Give a frozen inference form, called like the model: norms folded, masks baked in.

        Args:
            dtype: of its weights and features; None: that of the model.
        """
        return OptimizedRANet(self, dtype or next(self.parameters()).dtype)


class OptimizedRANet(Network):
    """A trained RANet for inference only: the same answers from fewer, simpler operations."""

    def __init__(self, model: RANet, dtype: torch.dtype) -> None:
        frozen = copy.deepcopy(model)
        fold(frozen)
        super().__init__(model.config, frozen.stem, frozen.subnetworks)
        self.dtype = dtype
        self.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.eval().requires_grad_(False)

    def predictions(
        self, images: Tensor, skip: Collection[int] = ()
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yield logits of each exit, as `Network.predictions` does."""
        images = images.to(dtype=self.dtype, memory_format=torch.channels_last)
        return super().predictions(images, skip)


class _Cached:
    """Features of one block with the images they were computed for; gathered when consumed."""

    def __init__(self, features: PassedUp, kept: Tensor | None) -> None:
        self.features = features
        self.kept = kept

    def take(self, kept: Tensor | None) -> PassedUp:
        """Give the features of these images (all: None), a subset of those computed."""
        if kept is self.kept:
            return self.features
        assert kept is not None
        index = kept if self.kept is None else torch.searchsorted(self.kept, kept)
        return tuple(take(features, index) for features in self.features)


def take(features: Tensor, index: Tensor | None) -> Tensor:
    """Gather images of features (batch, channels, height, width), channels last in memory."""
    if index is None:
        return features
    return features.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
