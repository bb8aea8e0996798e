"""Exit outputs against a direct forward pass over the same images."""

import pytest
import torch

from ranet.evaluation.exit_outputs import (
    ExitOutputs,
    SplitOutputs,
    anytime_accuracy,
    collect_exit_outputs,
    select_ensemble,
)
from ranet.evaluation.forward import ForwardPass
from tests.support.tiny import Digits, TwoExits, normalize


def test_exit_outputs_match_a_direct_forward_pass():
    model, digits = TwoExits(), Digits(0, 45, 10)
    model.train()
    answers = collect_exit_outputs(ForwardPass(model, normalize), digits)
    scores = answers.single
    with torch.inference_mode():
        probabilities = model.eval()(normalize(digits.images)).softmax(dim=-1)
    assert digits.num_open == 0
    assert scores.confidences.dtype == torch.float32
    torch.testing.assert_close(scores.confidences, probabilities.amax(dim=-1))
    assert torch.equal(scores.correct, probabilities.argmax(dim=-1) == digits.labels)
    rank = (probabilities > probabilities[:, range(45), digits.labels][..., None]).sum(dim=-1)
    assert torch.equal(scores.correct_top5, rank < 5)


def test_ensemble_outputs_use_the_mean_of_all_logits_so_far():
    model, digits = TwoExits(), Digits(0, 45, 10)
    answers = collect_exit_outputs(ForwardPass(model, normalize), digits)
    with torch.inference_mode():
        first, second = model.eval()(normalize(digits.images))
    both = ((first + second) / 2).softmax(dim=-1)
    torch.testing.assert_close(answers.ensemble.confidences[1], both.amax(dim=-1))
    assert torch.equal(answers.ensemble.correct[1], both.argmax(dim=-1) == digits.labels)
    assert torch.equal(answers.ensemble.confidences[0], answers.single.confidences[0])


def test_ensemble_is_selected_only_if_clearly_better_on_validation():
    def scores(share: float, seed: int) -> ExitOutputs:
        generator = torch.Generator().manual_seed(seed)
        correct = torch.rand(2, 2000, generator=generator) < torch.tensor([[0.5], [share]])
        confidences = torch.rand(2, 2000, generator=generator)
        return ExitOutputs(confidences, correct, correct)

    costs, budgets = (1.0, 2.0), (1.5, 2.0)
    same, better, worse = scores(0.8, 0), scores(0.9, 1), scores(0.7, 2)
    assert select_ensemble(SplitOutputs(same, better), costs, budgets) == "mean_logits"
    for other in (same, worse, scores(0.8, 3)):
        assert select_ensemble(SplitOutputs(same, other), costs, budgets) == "none"
    for count in (3, 5, 9):  # budgets without an exact float
        budgets = [1 + k / count for k in range(1, count + 1)]
        assert select_ensemble(SplitOutputs(same, same), costs, budgets) == "none"
    single = ExitOutputs(torch.ones(2, 1), torch.ones(2, 1).bool(), torch.ones(2, 1).bool())
    assert select_ensemble(SplitOutputs(single, single), costs, budgets) == "none"


def test_exit_outputs_in_bfloat16_are_close_to_float32():
    model, digits = TwoExits(), Digits(0, 45, 10)
    exact = collect_exit_outputs(ForwardPass(model, normalize), digits).single
    rounded = collect_exit_outputs(ForwardPass(model, normalize, "bfloat16"), digits).single
    assert rounded.confidences.dtype == torch.float32
    assert not torch.equal(rounded.confidences, exact.confidences)
    torch.testing.assert_close(rounded.confidences, exact.confidences, atol=0.02, rtol=0)


def test_anytime_accuracy_is_the_share_of_correct_predictions_in_percent():
    correct = torch.tensor([[True, False, False, False], [True, True, True, False]])
    top5 = torch.tensor([[True, True, False, False], [True, True, True, True]])
    top1, five = anytime_accuracy(ExitOutputs(torch.zeros(2, 4), correct, top5))
    assert top1.tolist() == [25.0, 75.0]
    assert five.tolist() == [50.0, 100.0]


def test_exit_outputs_survive_saving_and_loading(tmp_path):
    hits = torch.tensor([[True, False]])
    scores = ExitOutputs(torch.tensor([[0.25, 0.5]]), hits, ~hits)
    torch.save(SplitOutputs(scores, scores).state(), tmp_path / "scores.pt")
    loaded = SplitOutputs.from_state(torch.load(tmp_path / "scores.pt", weights_only=True)).ensemble
    assert torch.equal(loaded.confidences, scores.confidences)
    assert torch.equal(loaded.correct, hits)
    assert torch.equal(loaded.correct_top5, ~hits)


def test_exit_outputs_of_unequal_shapes_are_rejected():
    hits = torch.zeros(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"must all be \(exits, samples\), got .*\(2, 3\)"):
        ExitOutputs(torch.zeros(2, 3), hits, hits)
