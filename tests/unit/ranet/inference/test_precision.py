"""TF32: forbidden while scoring, and put back."""

import pytest
import torch

from ranet.evaluation.exit_outputs import collect_exit_outputs
from ranet.evaluation.forward import ForwardPass
from ranet.inference.precision import tf32
from tests.support.tiny import Digits, TwoExits, normalize


def is_allowed() -> tuple[bool | str, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_settings_return_after_an_error():
    before = is_allowed()
    assert before[1]  # PyTorch's default for convolutions
    with pytest.raises(ZeroDivisionError), tf32(allowed=False):
        raise ZeroDivisionError(is_allowed())
    assert is_allowed() == before


def test_scoring_forbids_tf32():
    seen = []

    def prepare(images):
        seen.append(is_allowed())
        return normalize(images)

    collect_exit_outputs(ForwardPass(TwoExits(), prepare), Digits(0, 20, 10))
    assert seen == [(False, False)] * 2
    assert is_allowed()[1]
