"""Equality of exported stages with reference outputs of the authors' network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.reference import conformance_images, conformance_weights
from ranet import model_from_official
from tests.support.engines import compile_in_engines


@pytest.mark.parametrize("name", ["cifar_readme_lg2_123_10", "imagenet_sh_c16_1000"])
def test_logits_of_engines_equal_the_authors(shared_data: Path, name: str):
    folder = shared_data.parent / "conformance"
    reference = json.loads((folder / f"{name}.json").read_text())
    state = conformance_weights(reference["shapes"])
    size = reference["input"][-1]
    model = model_from_official(reference["config"], reference["num_classes"], size, state).eval()
    images = conformance_images(reference["input"])
    expected = torch.from_numpy(np.load(folder / f"{name}.npz")["logits"])
    for network in compile_in_engines(model, images):
        torch.testing.assert_close(network(images).double(), expected, rtol=0, atol=5e-5)
