"""Equality with reference outputs of the authors' network."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ranet import model_from_official, mult_adds, official_ops, official_state_dict


def authors_weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Create reproducible weights: the name of each entry is its seed."""
    state = {}
    for name, shape in shapes.items():
        layer, _, entry = name.rpartition(".")
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if entry == "num_batches_tracked":
            state[name] = torch.tensor(0)
            continue
        if entry == "running_var" or (entry == "weight" and f"{layer}.running_var" in shapes):
            value = 0.5 + rng.random(shape)
        elif entry in ("running_mean", "bias"):
            value = 0.1 * rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[name] = torch.from_numpy(value.astype(np.float32))
    return state


@pytest.mark.parametrize("name", ["cifar_readme_lg2_123_10", "imagenet_sh_c16_1000"])
def test_logits_costs_and_parameters_equal_the_authors(shared_data: Path, name: str):
    folder = shared_data.parent / "conformance"
    reference: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    state = authors_weights(reference["shapes"])
    size = reference["input"][-1]
    model = model_from_official(reference["config"], reference["num_classes"], size, state).eval()
    images = np.random.default_rng(0).standard_normal(reference["input"]).astype(np.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(images))
    expected = torch.from_numpy(np.load(folder / f"{name}.npz")["logits"])
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=5e-5)
    cost = reference["cost"]
    assert list(mult_adds(model.config)) == cost["conv_linear_macs_cumulative"]
    assert list(official_ops(model.config)) == cost["official_ops_cumulative"]
    assert sum(p.numel() for p in model.parameters()) == cost["params_total"]
    exported = official_state_dict(model)
    assert list(exported) == list(reference["shapes"])
    assert all(torch.equal(exported[key], value) for key, value in state.items())
