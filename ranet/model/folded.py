"""Inference forms: batch norms folded into convolutions, staircases of zeros baked in."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ranet.model.blocks import DenseLayers, Laterals
from ranet.model.layers import ConvNormRelu, NormRelu, conv1x1
from ranet.model.stem import LargeStemStep


class FoldedConv(nn.Module):
    """Convolution with bias, then ReLU."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.stride, self.padding, self.groups = stride, padding, groups

    def forward(self, features: Tensor) -> Tensor:
        """Map features (batch, in_channels, height, width) to (batch, out_channels, ...)."""
        if self.weight.shape[-1] == 1:
            return F.relu_(conv1x1(features, self.weight, self.bias))
        return F.relu_(
            F.conv2d(
                features,
                self.weight,
                self.bias,
                stride=self.stride,
                padding=self.padding,
                groups=self.groups,
            )
        )


class FoldedDenseLayers(nn.Module):
    """`DenseLayers` without norms: the 1x1 convolutions' biases ride on the known channels."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layers: DenseLayers) -> None:
        super().__init__()
        self.widths = layers.widths
        shares = layers.reduce_weight().split(self.widths)
        norms = [norm for norm in layers.norms if isinstance(norm, NormRelu)]
        folded = [norm.folded(share) for norm, share in zip(norms, shares, strict=True)]
        self.register_buffer("weight", torch.cat([weight for weight, _ in folded]))
        self.register_buffer("bias", torch.cat([bias for _, bias in folded]))
        for j, (norm, weight) in enumerate(zip(norms[1:], layers.reduce_own, strict=True)):
            self.register_buffer(f"own_{j + 1}", norm.folded(weight)[0])
        last = len(self.widths) - 1
        self.convs = nn.ModuleList(
            FoldedConv(*norm.folded(conv), stride=layers.stride if j == last else 1, padding=1)
            for j, (norm, conv) in enumerate(zip(layers.conv_norms, layers.convs, strict=True))
            if isinstance(norm, NormRelu)
        )

    def forward(self, known: Tensor) -> list[Tensor]:
        """Map the known channels (input, lateral) to the new channels of each layer."""
        reduced = conv1x1(known, self.weight, self.bias).split(self.widths, dim=1)
        new: list[Tensor] = []
        for j, (share, conv) in enumerate(zip(reduced, self.convs, strict=True)):
            if new:
                share = conv1x1(torch.cat(new, dim=1), getattr(self, f"own_{j}")).add_(share)
            new.append(conv(F.relu(share)))
        return new


class FoldedLaterals(nn.Module):
    """`Laterals` without norms."""

    def __init__(self, laterals: Laterals) -> None:
        super().__init__()
        self.reduce = FoldedConv(*laterals.norm.folded(laterals.reduce_weight()))
        weight, groups = laterals.conv_weight()
        self.conv = FoldedConv(*laterals.conv_norm.folded(weight), padding=1, groups=groups)

    def forward(self, below: Tensor) -> Tensor:
        """Map features of the block below to (batch, layers x lateral, height, width)."""
        return self.conv(self.reduce(below))


@torch.no_grad()
def fold(module: nn.Module) -> None:
    """Replace all that has a batch norm inside a module by its inference form."""
    for name, child in module.named_children():
        if isinstance(child, DenseLayers):
            setattr(module, name, FoldedDenseLayers(child))
        elif isinstance(child, Laterals):
            setattr(module, name, FoldedLaterals(child))
        elif isinstance(child, ConvNormRelu):
            weight, bias = child.norm.folded(child.weight)
            setattr(
                module,
                name,
                FoldedConv(weight, bias, stride=child.stride, padding=child.padding),
            )
        elif isinstance(child, LargeStemStep):
            weight, bias = child.norm.folded(child.conv.weight, child.conv.bias)
            conv = FoldedConv(weight, bias, stride=2, padding=3)
            setattr(module, name, nn.Sequential(conv, nn.MaxPool2d(3, stride=2, padding=1)))
        else:
            fold(child)
