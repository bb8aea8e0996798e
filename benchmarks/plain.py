"""Plain RANet, layer by layer, with the operations of the authors' code.

The reference that benchmarks compare against: one module per layer, a concat per layer, every
bilinear resize carried out even where it changes nothing, all exits computed. Written from
Yang et al., CVPR 2020 (arXiv:2003.07326), and the behaviour of the authors' code; its parameters
carry the names of their state dict, so `ranet.official_state_dict` loads into it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranet.architecture import BlockSpec, ExitSpec, LateralSpec, UnitSpec, make_network_spec
from ranet.config import ModelConfig


def resize(features: Tensor, size: int) -> Tensor:
    """Bilinear resize to size x size, also for equal sizes."""
    return F.interpolate(features, size=(size, size), mode="bilinear", align_corners=True)


class Net(nn.Module):
    """Modules in sequence, under the authors' name `net`."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*modules)

    def forward(self, features: Tensor) -> Tensor:
        """Run the sequence."""
        return self.net(features)


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution without bias, batch norm, ReLU."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


def unit(plan: UnitSpec, stride: int = 1) -> Net:
    """Bottleneck unit: 1x1, then 3x3."""
    return Net(
        *conv(plan.in_channels, plan.width, 1), *conv(plan.width, plan.out_channels, 3, stride)
    )


class PlainLayer(nn.Module):
    """Dense layer, with a lateral unit in fusion blocks."""

    def __init__(self, own: UnitSpec, lateral: UnitSpec | None, stride: int) -> None:
        super().__init__()
        if lateral is not None:
            self.conv_up = unit(lateral)
        self.conv_normal = unit(own, stride)

    def forward(self, features: Tensor, lower: Tensor | None) -> Tensor:
        """Append this layer's channels to the features."""
        new = self.conv_normal(features)
        if lower is None:
            return torch.cat([features, new], dim=1)
        size = new.shape[-1]
        return torch.cat([resize(features, size), resize(self.conv_up(lower), size), new], dim=1)


class PlainBlock(nn.Module):
    """Block; returns its output and the features around every layer."""

    def __init__(self, plan: BlockSpec) -> None:
        super().__init__()
        lower: LateralSpec | None = plan.lower
        last = len(plan.units) - 1
        self.layers = nn.ModuleList(
            PlainLayer(
                own, lower.units[j] if lower else None, 2 if plan.is_down and j == last else 1
            )
            for j, own in enumerate(plan.units)
        )
        if lower:
            self.conv_last = Net(*conv(lower.in_channels, lower.compressed_channels, 1))
        if plan.transition_channels:
            self.trans = Net(*conv(plan.gathered_channels, plan.transition_channels, 1))

    def forward(self, features: Tensor, lower: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Run the block on its features and those of the lower block."""
        gathered = [features]
        for j, layer in enumerate(self.layers):
            gathered.append(layer(gathered[-1], lower[j] if lower else None))
        out = gathered[-1]
        if lower:
            out = torch.cat([out, resize(self.conv_last(lower[-1]), out.shape[-1])], dim=1)
        if hasattr(self, "trans"):
            out = self.trans(out)
        return out, gathered


class PlainExit(nn.Module):
    """Two strided convolutions, average pooling, a linear layer."""

    def __init__(self, plan: ExitSpec) -> None:
        super().__init__()
        self.m = nn.Sequential(
            Net(*conv(plan.in_channels, plan.hidden_channels, 3, 2)),
            Net(*conv(plan.hidden_channels, plan.hidden_channels, 3, 2)),
            nn.AvgPool2d(2),
        )
        self.linear = nn.Linear(plan.hidden_channels, plan.num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map features to logits (batch, classes)."""
        return self.linear(self.m(features).flatten(1))


class PlainStem(nn.Module):
    """Base features of every sub-network, lowest resolution first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for step in reversed(make_network_spec(config).stem):
            if step.is_large:
                steps.append(
                    nn.Sequential(
                        nn.Conv2d(3, step.out_channels, 7, 2, 3),
                        nn.BatchNorm2d(step.out_channels),
                        nn.ReLU(inplace=True),
                        nn.MaxPool2d(3, 2, 1),
                    )
                )
            else:
                steps.append(Net(*conv(step.in_channels, step.out_channels, 3, step.stride)))
        self.layers = nn.ModuleList(steps)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (batch, 3, height, width) to features, one tensor per sub-network."""
        features = []
        for step in self.layers:
            images = step(images)
            features.append(images)
        return features[::-1]


class PlainRANet(nn.Module):
    """The whole network; forward computes every exit."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        plan = make_network_spec(config)
        self.scale_flows = nn.ModuleList(
            nn.ModuleList(PlainBlock(block) for block in blocks) for blocks in plan.subnetworks
        )
        self.classifier = nn.ModuleList(
            PlainExit(block.exit) for block in plan.blocks if block.exit
        )
        self.FirstLayer = PlainStem(config)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (batch, 3, height, width) to logits (exits, batch, classes)."""
        return torch.stack(self.exits(images))

    def exits(self, images: Tensor) -> list[Tensor]:
        """Map images (batch, 3, height, width) to logits (batch, classes) of every exit."""
        logits: list[Tensor] = []
        lower: list[list[Tensor]] = []
        for base, blocks in zip(self.FirstLayer(images), self.scale_flows, strict=True):
            features, passed_up = base, []
            for number, block in enumerate(blocks):  # type: ignore[arg-type]
                below = lower[number] if number < len(lower) else None
                features, gathered = block(features, below)
                passed_up.append(gathered)
                if below is None:
                    logits.append(self.classifier[len(logits)](features))
            lower = passed_up
        return logits
