"""Conversion from and to the authors' state dict."""

import argparse
import re

import pytest
import torch

from ranet import ModelConfig, RANet, model_from_official, official_state_dict

OFFICIAL = {
    "ds": "cifar",
    "step": 2,
    "stepmode": "lg",
    "scale_list": [1, 2, 3],
    "grFactor": [2, 2, 1],
    "bnFactor": [2, 1, 1],
    "nChannels": 4,
    "growthRate": 5,
    "nBlocks": 2,
    "block_step": 2,
    "compress_factor": 0.25,
    "reduction": 0.5,
}


def checkpoint(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Create a checkpoint in the authors' format with random values."""
    torch.manual_seed(1)
    config = ModelConfig(
        scales=(1, 2, 3),
        growth_factors=(2, 2, 1),
        bottleneck_factors=(2, 1, 1),
        stem_channels=4,
        growth_rate=5,
        layers_per_block=2,
        layer_mode="linear",
        num_classes=6,
    )
    shapes = official_state_dict(RANet(config))
    return {
        name: torch.tensor(41 + k) if value.ndim == 0 else torch.rand(value.shape, dtype=dtype)
        for k, (name, value) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."]
)
def test_round_trip_of_the_authors_checkpoint_keeps_every_bit(prefix: str, dtype: torch.dtype):
    state = checkpoint(dtype)
    given = {prefix + name: value for name, value in state.items()}
    returned = official_state_dict(model_from_official(OFFICIAL, 6, 32, given))
    assert list(returned) == list(state)
    for name, value in state.items():
        assert returned[name].dtype == value.dtype, name
        assert torch.equal(returned[name], value), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "best_prec1": 0.5, "optimizer": {}},
        lambda state: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: dict(reversed(state.items())),
        lambda state: {name: torch.nn.Parameter(value, False) for name, value in state.items()},
    ],
)
def test_checkpoint_in_another_form_gives_the_same_network(wrap):
    expected = model_from_official(OFFICIAL, 6, 32, checkpoint()).state_dict()
    found = model_from_official(OFFICIAL, 6, 32, wrap(checkpoint())).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "arguments",
    [
        argparse.Namespace(**OFFICIAL, arch="RANet", gpu=None),
        {**OFFICIAL, "scale_list": "1-2-3", "grFactor": "2-2-1", "bnFactor": "2-1-1"},
        argparse.Namespace(**{**OFFICIAL, "scale_list": "1-2-3", "growthRate": "5"}),
        {name: str(value) for name, value in OFFICIAL.items() if not isinstance(value, list)}
        | {"scale_list": (1, 2, 3), "grFactor": "2-2-1", "bnFactor": [2, 1, 1]},
    ],
)
def test_arguments_in_another_form_give_the_same_network(arguments):
    expected = model_from_official(OFFICIAL, 6, 32, checkpoint())
    assert model_from_official(arguments, 6, 32, checkpoint()).config == expected.config


def test_checkpoint_without_batch_counters_is_loaded_with_counters_of_zero():
    old = {k: v for k, v in checkpoint().items() if not k.endswith("num_batches_tracked")}
    model = model_from_official(OFFICIAL, 6, 32, old)
    assert not model.batches_tracked.any()
    returned = official_state_dict(model)
    assert all(torch.equal(returned[name], value) for name, value in old.items())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.nn.Linear(1, 1), "pass its state_dict()"),
        ([1, 2], "must be a mapping of names to tensors, got list"),
        ({"epoch": 3}, "has the entry epoch of type int; pass the part"),
        ({"model": {}}, "has the entry model of type dict; pass the part"),
        ({"net.conv.weight": torch.zeros(1)}, "its first entry is net.conv.weight"),
        ({}, "state_dict has no entries"),
    ],
)
def test_object_that_is_no_checkpoint_is_rejected_with_what_to_pass(state, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model_from_official(OFFICIAL, 6, 32, state)


@pytest.mark.parametrize(
    ("name", "value"), [("scale_list", "1,2,3"), ("growthRate", "five"), ("grFactor", None)]
)
def test_argument_that_cannot_be_read_is_named(name, value):
    with pytest.raises(ValueError, match=f"config {name} is {value!r}"):
        model_from_official({**OFFICIAL, name: value}, 6, 32, checkpoint())


def test_round_trip_of_our_state_dict_keeps_every_value():
    model = model_from_official(OFFICIAL, 6, 32, checkpoint())
    again = model_from_official(OFFICIAL, 6, 32, official_state_dict(model))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert again.config == model.config


def test_training_adds_to_the_loaded_batch_counts():
    state = checkpoint()
    model = model_from_official(OFFICIAL, 6, 32, state).train()
    model(torch.randn(2, 3, 32, 32))
    for name, value in official_state_dict(model).items():
        if name.endswith("num_batches_tracked"):
            assert value == state[name] + 1
            assert value.dtype == torch.int64


def test_changing_the_model_does_not_change_the_checkpoint():
    state = checkpoint()
    copies = {name: value.clone() for name, value in state.items()}
    model = model_from_official(OFFICIAL, 6, 32, state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(state[name], copies[name]) for name in state)


def test_invalid_entry_is_rejected_with_its_name():
    state = checkpoint()
    name = "scale_flows.1.1.layers.2.conv_up.net.0.weight"
    with pytest.raises(ValueError, match=f"has no entry {name}"):
        model_from_official(OFFICIAL, 6, 32, {k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match=rf"{name} must have the shape .* got \(3, 3\)"):
        model_from_official(OFFICIAL, 6, 32, {**state, name: torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="has the unknown entry stray"):
        model_from_official(OFFICIAL, 6, 32, {**state, "stray.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"classifier\.0\.linear\.weight must have the shape"):
        model_from_official(OFFICIAL, 7, 32, state)
    short = {k: v for k, v in OFFICIAL.items() if k not in ("grFactor", "step")}
    with pytest.raises(ValueError, match="must have the authors' arguments step, grFactor"):
        model_from_official(short, 6, 32, state)
