"""Stages of a network, the parts between two exits, for engines.

(features of the remaining images) -> (features, lateral features, logits)
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ranet.architecture import BlockSpec, make_network_spec
from ranet.config import ModelConfig
from ranet.model.blocks import DenseBlock, FusionBlock
from ranet.model.exit import Exit
from ranet.model.graph_form import GraphBlock, GraphExit, GraphStemStep, lateral_channels
from ranet.model.layers import ConvNormRelu
from ranet.model.network import RANet, SubNetwork
from ranet.model.preprocessing import Normalize
from ranet.model.stem import LargeStemStep

IMAGES = "images"
"""Name of the input of the first stage."""
LOGITS = "logits"
"""Name of the last output of every stage that computes its exit."""


@dataclass(frozen=True)
class Step:
    """Module of a stage and the names of its tensors."""

    module: nn.Module
    reads: tuple[str, ...]
    writes: tuple[str, ...]


class Stage(nn.Module):
    """Part of a network between two exits, on named tensors.

    `inputs` and `outputs` are the names, in the order of the arguments and results. The first axis
    of every tensor is the batch. An output is read by a later stage, except `logits`, the last one.
    """

    def __init__(self, steps: Iterable[Step], outputs: tuple[str, ...]) -> None:
        """Create a stage from its steps, in the order of execution."""
        super().__init__()
        self.steps = tuple(steps)
        self.step_modules = nn.ModuleList(step.module for step in self.steps)
        self.inputs = names_read(self.steps)
        self.outputs = outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Map the tensors of `inputs` to those of `outputs`."""
        values = dict(zip(self.inputs, tensors, strict=True))
        for step, module in zip(self.steps, self.step_modules, strict=True):
            results = module(*(values[name] for name in step.reads))
            values.update(zip(step.writes, results, strict=True))
        return tuple(values[name] for name in self.outputs)

    def export(self, example: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
        """Export the stage as a program for any number of images.

        Args:
            example: tensors of `inputs` for two or more images; torch would treat the number 1
                as a constant.
        """
        batch = torch.export.Dim("batch", min=1)
        shapes = {"tensors": tuple({0: batch} for _ in example)}
        with torch.no_grad():
            return torch.export.export(self, example, dynamic_shapes=shapes)

    def without_exit(self) -> "Stage":
        """Return the stage without its exit."""
        return Stage(self.steps[:-1], self.outputs[:-1]).eval()


def names_read(steps: Iterable[Step]) -> tuple[str, ...]:
    """List the tensors that steps read from earlier stages."""
    read: dict[str, None] = {}
    written: set[str] = set()
    for step in steps:
        read.update(dict.fromkeys(name for name in step.reads if name not in written))
        written.update(step.writes)
    return tuple(read)


@torch.no_grad()
def make_stages(model: RANet, normalize: Normalize | None = None) -> list[Stage]:
    """Split a trained network into one stage per exit, in graph form.

    The stages compute the same logits as the network in evaluation mode, and share no memory with
    the network.

    Args:
        model: the network.
        normalize: normalisation, for stages that take uint8 images; None: the first stage takes
            normalised images.
    """
    parts: list[list[Step]] = [[]]
    for step in _network_steps(model, normalize):
        parts[-1].append(step)
        if step.writes == (LOGITS,):
            parts.append([])
    parts.pop()
    stages: list[Stage] = []
    read_later: set[str] = set()
    for steps in reversed(parts):
        written = dict.fromkeys(name for step in steps for name in step.writes)
        outputs = (*(name for name in written if name in read_later), LOGITS)
        stages.append(Stage(steps, outputs).eval().requires_grad_(False))
        read_later.update(stages[-1].inputs)
    return stages[::-1]


def stage_mult_adds(config: ModelConfig) -> list[tuple[int, int]]:
    """Mult-adds per image of the blocks and exit of each stage."""
    spec = make_network_spec(config)
    blocks = sum(step.cost.mult_adds for step in spec.stem)
    costs: list[tuple[int, int]] = []
    for block in spec.blocks:
        blocks += block.cost.mult_adds
        if block.exit:
            costs.append((blocks, block.exit.cost.mult_adds))
            blocks = 0
    return costs


def _network_steps(model: RANet, normalize: Normalize | None) -> Iterable[Step]:
    """Yield all steps of a network; an exit ends its stage."""
    yield from _stem_steps(model, normalize)
    specs = make_network_spec(model.config).subnetworks
    lower: list[tuple[BlockSpec, tuple[str, ...]]] = []
    for i, (subnetwork, blocks) in enumerate(zip(model.subnetworks, specs, strict=True)):
        assert isinstance(subnetwork, SubNetwork)
        exits = iter(subnetwork.exits)
        features = f"base{i + 1}"
        upper: list[tuple[BlockSpec, tuple[str, ...]]] = []
        for k, (block, spec) in enumerate(zip(subnetwork.blocks, blocks, strict=True)):
            assert isinstance(block, DenseBlock | FusionBlock)
            laterals = _lateral_names(f"block{i + 1}_{k + 1}", spec)
            output = f"block{i + 1}_{k + 1}_kept" if spec.transition_channels else laterals[-1]
            lower_spec, reads = lower[k] if spec.lower else (None, ())
            channels = lateral_channels(lower_spec) if lower_spec else ()
            module = GraphBlock(block, spec, channels)
            yield Step(module, (features, *reads), (output, *laterals))
            upper.append((spec, laterals))
            features = output
            if spec.exit:
                exit_ = next(exits)
                assert isinstance(exit_, Exit)
                yield Step(GraphExit(exit_), (features,), (LOGITS,))
        lower = upper


def _stem_steps(model: RANet, normalize: Normalize | None) -> Iterable[Step]:
    """Yield the stem, from the highest resolution to the lowest."""
    features = IMAGES
    for i in reversed(range(len(model.stem.steps))):
        step = model.stem.steps[i]
        assert isinstance(step, LargeStemStep | ConvNormRelu)
        module = GraphStemStep(step, normalize if features == IMAGES else None)
        yield Step(module, (features,), (f"base{i + 1}",))
        features = f"base{i + 1}"


def _lateral_names(name: str, spec: BlockSpec) -> tuple[str, ...]:
    """Names of the lateral features of a block."""
    return (f"{name}_early", name) if spec.is_down else (name,)
