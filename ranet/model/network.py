"""The network: sub-networks over one stem, exits behind their blocks."""

from collections import deque
from collections.abc import Collection, Generator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ranet.architecture import BlockSpec, make_network_spec
from ranet.config import ModelConfig
from ranet.model.blocks import DenseBlock, FusionBlock
from ranet.model.exit import Exit
from ranet.model.feature_buffer import FeatureBuffer
from ranet.model.fused import FusedStemStep, FusedSubNetwork
from ranet.model.layers import ConvNormRelu
from ranet.model.stem import LargeStemStep, Stem, make_step

CPU_PART = 64
"""Images that a CPU takes through the inference form at a time: by measurement."""

Features: TypeAlias = Tensor | FeatureBuffer
"""Features of some images, in the form that the blocks at hand read."""


class SubNetwork(nn.Module):
    """The blocks of one scale, and the exits behind its last ones."""

    def __init__(self, plans: tuple[BlockSpec, ...], below: tuple[BlockSpec, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            FusionBlock(plan, below[k]) if plan.lower else DenseBlock(plan)
            for k, plan in enumerate(plans)
        )
        self.exits = nn.ModuleList(Exit(plan.exit) for plan in plans if plan.exit)

    def begin(self, base: Tensor) -> Tensor:
        """Give what the first block reads, from the base features of this scale."""
        return base


class Network(nn.Module):
    """How images run through stem, blocks and exits, whatever form those have."""

    def __init__(self, config: ModelConfig, stem: Stem, subnetworks: nn.ModuleList) -> None:
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
        below = LateralQueue()
        for subnetwork in self.subnetworks:
            assert isinstance(subnetwork, SubNetwork | FusedSubNetwork)
            base = bases.pop(0)
            features = subnetwork.begin(base if kept is None else take(base, kept))
            above = LateralQueue()
            first_exit = len(subnetwork.blocks) - len(subnetwork.exits)
            for k, block in enumerate(subnetwork.blocks):
                features, passed_up = block(features, below.take(kept) if k < first_exit else ())
                if bases:  # a sub-network follows
                    above.put(passed_up, kept)
                if k < first_exit:
                    continue
                number += 1
                if number in skip:
                    continue
                keep = yield subnetwork.exits[k - first_exit](features)
                if keep is not None:
                    features = (
                        take(features, keep)
                        if isinstance(features, Tensor)
                        else features.take(keep)
                    )
                    kept = keep if kept is None else kept[keep]
            below = above


class LateralQueue:
    """What the blocks of one sub-network passed up, until those of the next one take it."""

    def __init__(self) -> None:
        self.entries: deque[tuple[tuple[Features, ...], Tensor | None]] = deque()
        self.gathered: tuple[Tensor, Tensor] | None = None

    def put(self, passed_up: tuple[Features, ...], kept: Tensor | None) -> None:
        """Add what one block passed up, and for which of the images; None: all."""
        self.entries.append((passed_up, kept))

    def take(self, kept: Tensor | None) -> tuple[Features, ...]:
        """Give, once, what the next block passed up, for a subset of its images."""
        passed_up, computed = self.entries.popleft()
        if kept is computed:
            return passed_up
        assert kept is not None
        index = kept if computed is None else torch.searchsorted(computed, kept)
        return tuple(self._gather(features, index) for features in passed_up)

    def _gather(self, features: Features, index: Tensor) -> Features:
        if isinstance(features, Tensor):
            return take(features, index)
        # The blocks of a stage pass up one canvas, read more and more far: gathered once.
        if self.gathered is None or self.gathered[0] is not features.data:
            self.gathered = (features.data, features.data.index_select(0, index))
        return FeatureBuffer(self.gathered[1], features.used)


def take(features: Tensor, index: Tensor) -> Tensor:
    """Gather images of features (batch, channels, height, width); channels stay last in memory."""
    return features.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


class RANet(Network):
    """Resolution Adaptive Network: cheap low-resolution exits first, the rest only on demand.

    Yang et al., CVPR 2020 (arXiv:2003.07326); computes the authors' network exactly.
    """

    batches_tracked: Tensor
    """Training batches that each batch norm of the authors' network has seen, in their order."""

    def __init__(self, config: ModelConfig) -> None:
        plan = make_network_spec(config)
        below = ((), *plan.subnetworks)
        subnetworks = nn.ModuleList(
            SubNetwork(blocks, lower)
            for blocks, lower in zip(plan.subnetworks, below, strict=False)
        )
        super().__init__(config, Stem(make_step(step) for step in plan.stem), subnetworks)
        self.register_buffer("batches_tracked", torch.zeros(plan.num_norms, dtype=torch.int64))

    def predictions(
        self, images: Tensor, skip: Collection[int] = ()
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yield logits of each exit, as `Network.predictions` does; count training batches."""
        if self.training:
            self.batches_tracked += 1
        return super().predictions(images, skip)

    def optimized(self, dtype: torch.dtype | None = None) -> "FusedRANet":
        """Give a frozen inference form, called like the model: norms folded, masks baked in.

        Args:
            dtype: of its weights and features; None: that of the model.
        """
        return FusedRANet(self, dtype or next(self.parameters()).dtype)


class FusedRANet(Network):
    """A trained RANet for inference only: the same answers from fewer, simpler operations."""

    def __init__(self, model: RANet, dtype: torch.dtype) -> None:
        with torch.no_grad():
            plans = make_network_spec(model.config).subnetworks
            subnetworks = nn.ModuleList(
                FusedSubNetwork(subnetwork.blocks, subnetwork.exits, blocks, blocks is plans[-1])
                for subnetwork, blocks in zip(model.subnetworks, plans, strict=True)
                if isinstance(subnetwork, SubNetwork)
            )
            stem = Stem(
                FusedStemStep(step)
                for step in model.stem.steps
                if isinstance(step, LargeStemStep | ConvNormRelu)
            )
            super().__init__(model.config, stem, subnetworks)
        # 3x3 convolutions want their weights channels last; nothing stays shared with the model.
        formats = {4: torch.channels_last}
        self._apply(
            lambda tensor: tensor.to(
                dtype, copy=True, memory_format=formats.get(tensor.ndim, torch.preserve_format)
            )
        )
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (exits, batch, classes)."""
        # On a CPU the features of many images would fall out of the cache between layers.
        parts = images.split(CPU_PART) if images.device.type == "cpu" else (images,)
        return torch.cat([super(FusedRANet, self).forward(part) for part in parts], dim=1)

    @torch.no_grad()
    def predictions(
        self, images: Tensor, skip: Collection[int] = ()
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yield logits of each exit, as `Network.predictions` does."""
        dtype = next(self.buffers()).dtype
        images = images.to(dtype=dtype, memory_format=torch.channels_last)
        yield from super().predictions(images, skip)
