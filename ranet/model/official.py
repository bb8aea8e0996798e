"""Conversion between the state dicts of `RANet` and of the authors' network.

Both networks compute the same function but store it differently: `RANet` stores the 1x1
convolutions of a block's layers in one tensor and orders features as described in
`ranet.model.blocks`. The list of `_Piece`s defines the whole difference, in both directions.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ranet.architecture import BlockSpec, UnitSpec, make_network_spec
from ranet.config import ModelConfig
from ranet.model.network import RANet

_Value = TypeVar("_Value")

_NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var")
_ARGUMENTS = (
    *("ds", "step", "stepmode", "scale_list", "grFactor", "bnFactor", "nChannels"),
    *("growthRate", "nBlocks", "block_step", "compress_factor", "reduction"),
)


@dataclass(frozen=True)
class _Piece:
    """Tensor shared by both state dicts: `official[:, columns]` is `ours[rows]`.

    None stands for all columns or all rows.
    """

    official: str
    ours: str
    shape: tuple[int, ...]
    """Shape of the authors' entry."""
    columns: tuple[int, ...] | None = None
    rows: range | None = None


def model_from_official(
    config: Mapping[str, Any] | Namespace,
    num_classes: int,
    image_size: int,
    state_dict: Mapping[str, Any],
) -> RANet:
    """Create a network from a checkpoint of the authors' code.

    Args:
        config: the authors' arguments, as a mapping or as argparse gives them: ds (cifar or
            imagenet), step, stepmode, scale_list, grFactor, bnFactor, nChannels, growthRate,
            nBlocks, block_step, compress_factor, reduction; further arguments are ignored. Lists
            may be written as on the authors' command line: 1-2-3.
        num_classes: number of classes of the checkpoint.
        image_size: height and width of the images, in pixels.
        state_dict: the authors' entries, or a checkpoint that contains them as `state_dict`; with
            or without the prefixes `module.` (DataParallel) and `_orig_mod.` (torch.compile).
            Batch counters, which old versions of PyTorch did not save, may be missing.

    Raises:
        ValueError: an argument or an entry is missing, unknown or of the wrong shape.
    """
    model_config = _config_from_official(config, num_classes, image_size)
    official = _entries_of(state_dict)
    pieces = list(_pieces(model_config))
    counters = _counters(pieces)
    if not any(name in official for name in counters):
        official |= dict.fromkeys(counters, torch.tensor(0))
    _check_entries(official, pieces, counters)
    model = RANet(model_config)
    collected: dict[str, list[Tensor]] = {}
    for piece in pieces:
        value = official[piece.official]
        if piece.columns is not None:
            value = value[:, list(piece.columns)]
        collected.setdefault(piece.ours, []).append(value)
    # The rows of each of our entries are in order, so concatenating them restores the entry.
    ours = {name: torch.cat(values) for name, values in collected.items()}
    ours["batches_tracked"] = torch.stack([official[name].to(torch.int64) for name in counters])
    model.load_state_dict({name: value.clone() for name, value in ours.items()}, assign=True)
    return model


def official_state_dict(model: RANet) -> dict[str, Tensor]:
    """Convert a network to the authors' state dict."""
    ours = model.state_dict()
    official: dict[str, Tensor] = {}
    norms = iter(model.batches_tracked)
    for piece in _pieces(model.config):
        value = ours[piece.ours]
        if piece.rows is not None:
            value = value[piece.rows.start : piece.rows.stop]
        if piece.official not in official:
            official[piece.official] = value.new_empty(piece.shape)
        if piece.columns is None:
            official[piece.official].copy_(value)
        else:
            official[piece.official][:, list(piece.columns)] = value
        if piece.official.endswith("running_var"):
            counter = next(norms).detach().clone()
            official[_counter(piece.official)] = counter
    return official


def _counter(running_var: str) -> str:
    return running_var.removesuffix("running_var") + "num_batches_tracked"


def _counters(pieces: list[_Piece]) -> list[str]:
    """Names of the authors' batch counters, in state dict order."""
    return [_counter(p.official) for p in pieces if p.official.endswith("running_var")]


def _entries_of(state_dict: Any) -> dict[str, Tensor]:
    """Return the entries of a checkpoint on the CPU, without the prefixes of wrappers."""
    if isinstance(state_dict, torch.nn.Module):
        raise ValueError("state_dict is a module; pass its state_dict()")
    if isinstance(state_dict, Mapping) and isinstance(state_dict.get("state_dict"), Mapping):
        state_dict = state_dict["state_dict"]
    if not isinstance(state_dict, Mapping):
        raise ValueError(
            f"state_dict must be a mapping of names to tensors, got {type(state_dict).__name__}; "
            "pass what torch.load returns for the authors' checkpoint"
        )
    if not state_dict:
        raise ValueError("state_dict has no entries; pass the weights of the authors' checkpoint")
    entries = {}
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"state_dict has the entry {name} of type {type(value).__name__}; pass the part "
                "of the checkpoint that holds the weights"
            )
        while (short := name.removeprefix("module.").removeprefix("_orig_mod.")) != name:
            name = short
        entries[name] = value.detach().cpu()
    return entries


def _argument(config: Mapping[str, Any], name: str, kind: Callable[[Any], _Value]) -> _Value:
    """Convert an argument of the authors, which may still be text of a command line."""
    try:
        return kind(config[name])
    except (TypeError, ValueError) as error:
        raise ValueError(f"config {name} is {config[name]!r}: {error}") from error


def _integers(value: Any) -> tuple[int, ...]:
    return tuple(int(each) for each in (value.split("-") if isinstance(value, str) else value))


def _config_from_official(
    arguments: Mapping[str, Any] | Namespace, num_classes: int, image_size: int
) -> ModelConfig:
    config = vars(arguments) if isinstance(arguments, Namespace) else arguments
    if missing := [name for name in _ARGUMENTS if name not in config]:
        raise ValueError(f"config must have the authors' arguments {', '.join(missing)}: add them")
    modes = {"even": "even", "lg": "linear"}
    kinds = {"cifar": ("small", 128), "imagenet": ("large", None)}
    if config["stepmode"] not in modes:
        raise ValueError(f"config stepmode must be even or lg, got {config['stepmode']!r}")
    if config["ds"] not in kinds:
        raise ValueError(f"config ds must be cifar or imagenet, got {config['ds']!r}")
    stem, exit_channels = kinds[config["ds"]]
    return ModelConfig(
        scales=_argument(config, "scale_list", _integers),
        growth_rate=_argument(config, "growthRate", int),
        growth_factors=_argument(config, "grFactor", _integers),
        bottleneck_factors=_argument(config, "bnFactor", _integers),
        stem_channels=_argument(config, "nChannels", int),
        layers_per_block=_argument(config, "step", int),
        layer_mode=modes[config["stepmode"]],  # type: ignore[arg-type]
        num_blocks=_argument(config, "nBlocks", int),
        extra_blocks=_argument(config, "block_step", int),
        compress_factor=_argument(config, "compress_factor", float),
        reduction=_argument(config, "reduction", float),
        stem=stem,  # type: ignore[arg-type]
        exit_channels=exit_channels,
        image_size=image_size,
        num_classes=num_classes,
    )


def _check_entries(
    official: Mapping[str, Tensor], pieces: list[_Piece], counters: list[str]
) -> None:
    expected: dict[str, tuple[int, ...]] = {piece.official: piece.shape for piece in pieces}
    expected.update(dict.fromkeys(counters, ()))
    for name, shape in expected.items():
        if name not in official:
            raise ValueError(
                f"state_dict has no entry {name}, which this configuration needs; its first entry "
                f"is {next(iter(official))}"
            )
        if tuple(official[name].shape) != shape:
            raise ValueError(
                f"state_dict entry {name} must have the shape {shape} in this configuration, "
                f"got {tuple(official[name].shape)}"
            )
    if unknown := [name for name in official if name not in expected]:
        raise ValueError(
            f"state_dict has the unknown entry {unknown[0]}, which this configuration does not have"
            + (f" ({len(unknown)} unknown entries)" if len(unknown) > 1 else "")
        )


def _pieces(config: ModelConfig) -> Iterator[_Piece]:
    """Yield all pieces in the order of the authors' state dict."""
    spec = make_network_spec(config)
    exits: list[_Piece] = []
    number = 0
    lower_orders: list[_Orders] = []
    for i, blocks in enumerate(spec.subnetworks):
        order = list(range(spec.stem[i].out_channels))
        orders: list[_Orders] = []
        lower_block = spec.subnetworks[i - 1] if i else ()
        for k, block in enumerate(blocks):
            official, ours = f"scale_flows.{i}.{k}", f"subnetworks.{i}.blocks.{k}"
            if block.lower:
                yield from _fusion_layers(
                    official, ours, block, lower_block[k], order, lower_orders[k]
                )
            else:
                for j in range(len(block.units)):
                    yield from _own_unit(f"{official}.layers.{j}", ours, block, j, order)
            block_orders = _orders(block, order)
            order = block_orders.gathered
            if block.transition_channels:
                shape = (block.transition_channels, block.gathered_channels, 1, 1)
                yield from _conv(f"{official}.trans", f"{ours}.transition", shape, order)
                order = list(range(block.transition_channels))
            orders.append(block_orders)
            if block.exit:
                exit_ = f"subnetworks.{i}.exits.{k - len(lower_block)}"
                width, inputs = block.exit.hidden_channels, block.exit.in_channels
                theirs = f"classifier.{number}"
                shape = (width, inputs, 3, 3)
                exits += _conv(f"{theirs}.m.0", f"{exit_}.reduce.0", shape, order)
                exits += _conv(f"{theirs}.m.1", f"{exit_}.reduce.1", (width, width, 3, 3))
                classes = block.exit.num_classes
                exits += [
                    _Piece(f"{theirs}.linear.weight", f"{exit_}.classify.weight", (classes, width)),
                    _Piece(f"{theirs}.linear.bias", f"{exit_}.classify.bias", (classes,)),
                ]
                number += 1
        lower_orders = orders
    yield from exits
    for position, step in enumerate(reversed(spec.stem)):
        official = f"FirstLayer.layers.{position}"
        ours = f"stem.steps.{len(spec.stem) - 1 - position}"
        if step.is_large:
            shape = (step.out_channels, step.in_channels, 7, 7)
            yield _Piece(f"{official}.0.weight", f"{ours}.conv.weight", shape)
            yield _Piece(f"{official}.0.bias", f"{ours}.conv.bias", shape[:1])
            yield from _norm(f"{official}.1", f"{ours}.norm", step.out_channels)
        else:
            yield from _conv(official, ours, (step.out_channels, step.in_channels, 3, 3))


@dataclass(frozen=True)
class _Orders:
    """Channel orders of the authors' network at three points of a block."""

    before_last: list[int]
    """Input of the last layer (in a down block, also its first lateral features)."""
    after_last: list[int]
    """Output of the last layer."""
    gathered: list[int]
    """Output of the last layer and compressed channels: input of the transition or next block."""


def _orders(block: BlockSpec, order: list[int]) -> _Orders:
    """Compute the channel orders of a block from its input order."""
    num_layers = len(block.units)
    if block.is_down:
        lateral, own = _layer_channels(block, num_layers - 1)
        before = order + lateral + own
        all_lateral, all_own = _layer_channels(block, num_layers)
        after = before + all_lateral[len(lateral) :] + all_own[len(own) :]
    else:
        lateral, own = _layer_channels(block, num_layers)
        before = after = order + lateral + own
    return _Orders(before, after, after + list(range(len(after), block.gathered_channels)))


def _layer_channels(block: BlockSpec, num_layers: int) -> tuple[list[int], list[int]]:
    """Lateral and own channels of the first layers, in authors' order."""
    lateral, own = block.lateral_channels, block.units[0].out_channels
    starts = [block.in_channels + j * (lateral + own) for j in range(num_layers)]
    return (
        [start + c for start in starts for c in range(lateral)],
        [start + lateral + c for start in starts for c in range(own)],
    )


def _fusion_layers(
    official: str,
    ours: str,
    block: BlockSpec,
    lower_block: BlockSpec,
    order: list[int],
    lower_orders: _Orders,
) -> Iterator[_Piece]:
    assert block.lower is not None
    lower_input = lower_orders.after_last[: lower_block.in_channels]
    units, lateral = block.lower.units, block.lateral_channels
    widths = [unit.width for unit in units]
    for j, unit in enumerate(units):
        theirs, laterals = f"{official}.layers.{j}.conv_up.net", f"{ours}.laterals"
        yield from _reduce(theirs, laterals, units, j, lower_block, lower_input)
        rows = range(sum(widths[:j]), sum(widths[: j + 1]))
        yield from _norm(f"{theirs}.1", f"{laterals}.norm", unit.width, rows)
        shape = (lateral, unit.width, 3, 3)
        yield _Piece(f"{theirs}.3.weight", f"{laterals}.convs.{j}", shape)
        rows = range(j * lateral, (j + 1) * lateral)
        yield from _norm(f"{theirs}.4", f"{laterals}.conv_norm", lateral, rows)
        yield from _own_unit(f"{official}.layers.{j}", ours, block, j, order)
    shape = (block.lower.compressed_channels, block.lower.in_channels, 1, 1)
    yield from _conv(f"{official}.conv_last", f"{ours}.compress", shape, lower_orders.after_last)


def _own_unit(
    official: str, ours: str, block: BlockSpec, j: int, order: list[int]
) -> Iterator[_Piece]:
    theirs, layers, unit = f"{official}.conv_normal.net", f"{ours}.layers", block.units[j]
    yield from _reduce(theirs, layers, block.units, j, block, order)
    yield from _norm(f"{theirs}.1", f"{layers}.norms.{j}", unit.width)
    shape = (unit.out_channels, unit.width, 3, 3)
    yield _Piece(f"{theirs}.3.weight", f"{layers}.convs.{j}", shape)
    yield from _norm(f"{theirs}.4", f"{layers}.conv_norms.{j}", unit.out_channels)


def _reduce(
    official: str,
    ours: str,
    units: tuple[UnitSpec, ...],
    j: int,
    read: BlockSpec,
    order: list[int],
) -> Iterator[_Piece]:
    """Pieces of unit j's 1x1 convolution, which reads the block `read`."""
    unit, start = units[j], sum(unit.width for unit in units[:j])
    name, shape = f"{official}.0.weight", (unit.width, unit.in_channels, 1, 1)
    rows = range(start, start + unit.width)
    yield _Piece(name, f"{ours}.reduce", shape, tuple(order), rows)
    if j:
        lateral, own = _layer_channels(read, j)
        if lateral:
            yield _Piece(name, f"{ours}.reduce_lateral.{j - 1}", shape, tuple(lateral))
        yield _Piece(name, f"{ours}.reduce_own.{j - 1}", shape, tuple(own))


def _conv(
    official: str, ours: str, shape: tuple[int, ...], columns: list[int] | None = None
) -> Iterator[_Piece]:
    order = None if columns is None else tuple(columns)
    yield _Piece(f"{official}.net.0.weight", f"{ours}.weight", shape, order)
    yield from _norm(f"{official}.net.1", f"{ours}.norm", shape[0])


def _norm(
    official: str, ours: str, num_channels: int, rows: range | None = None
) -> Iterator[_Piece]:
    for entry in _NORM_ENTRIES:
        yield _Piece(f"{official}.{entry}", f"{ours}.{entry}", (num_channels,), None, rows)
