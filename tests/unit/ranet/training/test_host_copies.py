"""Copies of a snapshot in kept memory."""

import io

import torch

from ranet.config import EmaConfig, TrainConfig
from ranet.training.host_copies import HostCopies
from ranet.training.state import TrainState
from tests.support.tiny import assert_same, normalize, small_ranet


def trained_state(seed: int = 0) -> TrainState:
    """State after one step, with weights in channels-last layout."""
    training = TrainState(TrainConfig(ema=EmaConfig(decay=0.9)), small_ranet(seed), normalize)
    training.model(torch.rand(4, 3, 16, 16)).sum().backward()
    training.optimizer.step()
    return training


def test_copy_equals_the_snapshot_and_does_not_change_with_the_training():
    training, copies = trained_state(), HostCopies()
    copied = copies.copy(training.snapshot())
    assert_same(copied, training.snapshot())
    before = {name: value.clone() for name, value in copied["model"].items()}
    training.optimizer.step()
    assert_same(copied["model"], before)
    for name, weight in training.model.named_parameters():
        assert copied["model"][name].stride() == weight.stride()


def test_next_copy_reuses_the_memory():
    training, copies = trained_state(), HostCopies()
    pointers = []
    for _ in range(2):
        copied = copies.copy(training.snapshot())
        tensors = [*copied["model"].values(), *copied["ema"].values()]
        pointers.append([tensor.data_ptr() for tensor in tensors])
    assert pointers[0] == pointers[1]


def test_saved_copy_resumes_the_training():
    training, file = trained_state(), io.BytesIO()
    torch.save(HostCopies().copy(training.snapshot()), file)
    file.seek(0)
    other = trained_state(seed=1)
    other.restore(torch.load(file, weights_only=True))
    assert_same(other.snapshot(), training.snapshot())


def test_state_without_ema_and_momentum_is_copied():
    training = TrainState(TrainConfig(), small_ranet(), normalize)
    assert_same(HostCopies().copy(training.snapshot()), training.snapshot())
