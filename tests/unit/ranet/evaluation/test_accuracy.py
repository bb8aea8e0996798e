"""Top-1 and top-5 hits."""

import torch

from ranet.evaluation.accuracy import exit_hits


def test_exit_hits_are_top1_and_top5():
    logits = torch.tensor([[[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 3])
    first, five = exit_hits(logits, torch.tensor([0, 4, 5]))
    assert first.tolist() == [[True, False, False]]
    assert five.tolist() == [[True, True, False]]
    _, all_of_three = exit_hits(logits[..., :3], torch.tensor([0, 1, 2]))
    assert all_of_three.all()
