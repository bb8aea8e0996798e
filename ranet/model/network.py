"""Network: stem, sub-networks and exits, in training and inference form."""

from collections import deque
from collections.abc import Collection, Generator
from pathlib import Path
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
from ranet.model.metadata import ModelMetadata
from ranet.model.saved import SavedModel, find_model, read_model
from ranet.model.stem import LargeStemStep, Stem, make_step
from ranet.torch_internals import convert

CPU_CHUNK_IMAGES = 64
"""Images per forward pass of the inference form on a CPU; found by measurement."""

Features: TypeAlias = Tensor | FeatureBuffer
"""Features in the training form (tensor) or the inference form (buffer)."""


class SubNetwork(nn.Module):
    """Blocks of one scale, and exits on the last of these blocks."""

    def __init__(self, specs: tuple[BlockSpec, ...], lower: tuple[BlockSpec, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            FusionBlock(spec, lower[k]) if spec.lower else DenseBlock(spec)
            for k, spec in enumerate(specs)
        )
        self.exits = nn.ModuleList(Exit(spec.exit) for spec in specs if spec.exit)

    def begin(self, base: Tensor) -> Tensor:
        """Return the input of the first block, which is the base features."""
        return base


class Network(nn.Module):
    """Forward pass through stem, blocks and exits, in training or inference form."""

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
        """Yield the logits (images, classes) of each exit lazily, cheapest exit first.

        The generator computes the blocks after an exit only when the caller requests the next
        value; a caller stops early by requesting no further values. The caller may send the
        indices (kept,), int64 and ascending, of the images that continue, relative to the images
        of the last logits: later blocks then run on these images only.

        Args:
            images: (batch, 3, height, width), normalised.
            skip: exits, counted from 1, that are neither computed nor yielded.
        """
        number = 0
        kept = None  # indices into `images` of the images that continue; None: all images
        bases = self.stem(images)
        lower = LateralQueue()
        for subnetwork in self.subnetworks:
            assert isinstance(subnetwork, SubNetwork | FusedSubNetwork)
            base = bases.pop(0)
            features = subnetwork.begin(base if kept is None else select_images(base, kept))
            upper = LateralQueue()
            first_exit = len(subnetwork.blocks) - len(subnetwork.exits)
            for k, block in enumerate(subnetwork.blocks):
                features, lateral_features = block(
                    features, lower.take(kept) if k < first_exit else ()
                )
                if bases:  # another sub-network follows
                    upper.put(lateral_features, kept)
                if k < first_exit:
                    continue
                number += 1
                if number in skip:
                    continue
                keep = yield subnetwork.exits[k - first_exit](features)
                if keep is not None:
                    features = (
                        select_images(features, keep)
                        if isinstance(features, Tensor)
                        else features.take(keep)
                    )
                    kept = keep if kept is None else kept[keep]
            lower = upper


class LateralQueue:
    """Queue of lateral features for the next sub-network's blocks."""

    def __init__(self) -> None:
        self.entries: deque[tuple[tuple[Features, ...], Tensor | None]] = deque()
        self.gathered: tuple[Tensor, Tensor] | None = None

    def put(self, lateral_features: tuple[Features, ...], kept: Tensor | None) -> None:
        """Append the lateral features of one block and their images."""
        self.entries.append((lateral_features, kept))

    def take(self, kept: Tensor | None) -> tuple[Features, ...]:
        """Remove and return the next block's lateral features for some images."""
        lateral_features, computed = self.entries.popleft()
        if kept is computed:
            return lateral_features
        assert kept is not None
        index = kept if computed is None else torch.searchsorted(computed, kept)
        return tuple(self._gather(features, index) for features in lateral_features)

    def _gather(self, features: Features, index: Tensor) -> Features:
        """Copy the features of the images at these indices."""
        if isinstance(features, Tensor):
            return select_images(features, index)
        # Blocks between two changes of resolution share one buffer: gather it only once.
        if self.gathered is None or self.gathered[0] is not features.data:
            self.gathered = (features.data, features.data.index_select(0, index))
        return FeatureBuffer(self.gathered[1], features.used)


def select_images(features: Tensor, index: Tensor) -> Tensor:
    """Copy features (batch, channels, height, width) of some images, channels last."""
    return features.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


class RANet(Network):
    """Resolution Adaptive Network: cheap low-resolution exits first.

    Yang et al., CVPR 2020 (arXiv:2003.07326); the same function as the authors' network.
    """

    batches_tracked: Tensor
    """Training batches seen by each batch norm, in the order of the authors' network."""
    metadata: ModelMetadata | None = None
    """Preprocessing, class names, thresholds and accuracy of a trained network that was loaded."""

    def __init__(self, config: ModelConfig) -> None:
        spec = make_network_spec(config)
        lowers = ((), *spec.subnetworks)
        subnetworks = nn.ModuleList(
            SubNetwork(blocks, lower)
            for blocks, lower in zip(spec.subnetworks, lowers, strict=False)
        )
        super().__init__(config, Stem(make_step(step) for step in spec.stem), subnetworks)
        self.register_buffer("batches_tracked", torch.zeros(spec.num_norms, dtype=torch.int64))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "RANet":
        """Load a trained network in evaluation mode, with its `metadata`.

        Args:
            name: one of `pretrained_names()`, or the folder of a network.

        Raises:
            FileNotFoundError: there is no such network; the message lists the names.
            ValueError: the files of the network are damaged.
        """
        return cls.from_saved(read_model(find_model(name)))

    @classmethod
    def from_saved(cls, saved: SavedModel) -> "RANet":
        """Create a trained network in evaluation mode, with its `metadata`.

        Raises:
            ValueError: the weights do not fit the network.
        """
        model = cls(saved.metadata.model)
        try:
            model.load_state_dict(saved.weights)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the weights of {saved.metadata.name} do not fit its settings: {reason:.200}"
            ) from error
        model.metadata = saved.metadata
        return model.eval()

    def predictions(
        self, images: Tensor, skip: Collection[int] = ()
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yield the logits of each exit like `Network.predictions`; count training batches."""
        if self.training:
            self.batches_tracked += 1
        return super().predictions(images, skip)

    def optimized(self, dtype: torch.dtype | None = None) -> "FusedRANet":
        """Create a frozen inference form of the model.

        Args:
            dtype: type of weights and features; None: the type of the model.
        """
        return FusedRANet(self, dtype or next(self.parameters()).dtype)


class FusedRANet(Network):
    """Inference form of a trained RANet: same logits, fewer and simpler operations."""

    def __init__(self, model: RANet, dtype: torch.dtype) -> None:
        with torch.no_grad():
            specs = make_network_spec(model.config).subnetworks
            subnetworks = nn.ModuleList(
                FusedSubNetwork(subnetwork.blocks, subnetwork.exits, blocks, blocks is specs[-1])
                for subnetwork, blocks in zip(model.subnetworks, specs, strict=True)
                if isinstance(subnetwork, SubNetwork)
            )
            stem = Stem(
                FusedStemStep(step)
                for step in model.stem.steps
                if isinstance(step, LargeStemStep | ConvNormRelu)
            )
            super().__init__(model.config, stem, subnetworks)
        # 3x3 convolutions are fastest with channels-last weights. The copies share no memory with
        # the model.
        formats = {4: torch.channels_last}
        convert(
            self,
            lambda tensor: tensor.to(
                dtype, copy=True, memory_format=formats.get(tensor.ndim, torch.preserve_format)
            ),
        )
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (exits, batch, classes)."""
        # On a CPU the features of a large batch do not fit into the cache between layers.
        chunks = images.split(CPU_CHUNK_IMAGES) if images.device.type == "cpu" else (images,)
        return torch.cat([super(FusedRANet, self).forward(chunk) for chunk in chunks], dim=1)

    @torch.no_grad()
    def predictions(
        self, images: Tensor, skip: Collection[int] = ()
    ) -> Generator[Tensor, Tensor | None, None]:
        """Yield the logits of each exit like `Network.predictions`."""
        dtype = next(self.buffers()).dtype
        images = images.to(dtype=dtype, memory_format=torch.channels_last)
        yield from super().predictions(images, skip)
