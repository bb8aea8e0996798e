"""Equality with reference outputs of the authors' network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.reference import conformance_images, conformance_weights
from ranet import model_from_official, mult_adds, official_ops, official_state_dict


@pytest.mark.parametrize("name", ["cifar_readme_lg2_123_10", "imagenet_sh_c16_1000"])
def test_logits_costs_and_parameters_equal_the_authors(shared_data: Path, name: str):
    folder = shared_data.parent / "conformance"
    reference: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    state = conformance_weights(reference["shapes"])
    size = reference["input"][-1]
    model = model_from_official(reference["config"], reference["num_classes"], size, state).eval()
    with torch.inference_mode():
        logits = model(conformance_images(reference["input"]))
    expected = torch.from_numpy(np.load(folder / f"{name}.npz")["logits"])
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=5e-5)
    cost = reference["cost"]
    assert list(mult_adds(model.config)) == cost["conv_linear_macs_cumulative"]
    assert list(official_ops(model.config)) == cost["official_ops_cumulative"]
    assert sum(p.numel() for p in model.parameters()) == cost["params_total"]
    exported = official_state_dict(model)
    assert list(exported) == list(reference["shapes"])
    assert all(torch.equal(exported[key], value) for key, value in state.items())
