"""Training loop on real digits, one process."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from ranet import RANet
from ranet.config import LossConfig, OptimConfig, TrainConfig
from ranet.training.optim import NonFiniteLoss
from tests.support.digit_training import CPU, QUICK, NanOnCall, train
from tests.support.tiny import (
    Killed,
    Recorder,
    TwoExits,
    assert_same,
    normalize,
    small_ranet,
)


def test_training_reaches_high_accuracy_on_digits():
    recorder = Recorder()
    config = TrainConfig(epochs=4, batch_size=32, optim=OptimConfig(lr=0.05, schedule="cosine"))
    train(config, recorder=recorder, digits=1000)
    first, last = recorder.metrics[0], recorder.metrics[-1]
    assert last["train/loss"] < first["train/loss"] / 2
    assert last["val/exit1/top1"] > 85
    assert last["val/exit2/top1"] > 90
    assert last["val/exit2/top5"] > 97


def test_every_epoch_is_reported_with_all_metrics():
    recorder = Recorder()
    last = train(recorder=recorder)
    names = {"epoch", "train/loss", "train/images_per_second", "train/data_wait", "train/lr"}
    names |= {"val/loss"} | {f"val/exit{k}/top{n}" for k in (1, 2) for n in (1, 5)}
    assert all(metrics.keys() == names for metrics in recorder.metrics)
    assert [metrics["epoch"] for metrics in recorder.metrics] == [1, 2, 3, 4]
    assert [snapshot["epoch"] for snapshot in recorder.snapshots] == [1, 2, 3, 4]
    assert [len(snapshot["history"]) for snapshot in recorder.snapshots] == [1, 2, 3, 4]
    assert_same(last, recorder.snapshots[-1])
    assert last["history"] == recorder.metrics
    assert recorder.num_images == recorder.num_steps * QUICK.batch_size == 40 * QUICK.batch_size
    assert all(0 < metrics["train/data_wait"] < 1 for metrics in recorder.metrics)
    # A tenth after 2 and after 3 of 4 epochs; the warm-up is over after half of the first.
    assert [m["train/lr"] for m in recorder.metrics] == pytest.approx([0.05, 0.05, 0.005, 0.0005])


@pytest.mark.parametrize("micro_batch", [1, 7, 16, 32, 100])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch):
    sizes = []

    def prepare(images):
        sizes.append(len(images))
        return normalize(images)

    config = TrainConfig(
        epochs=1, batch_size=32, loss=LossConfig(label_smoothing=0.1), optim=QUICK.optim
    )
    whole = train(config, TwoExits(normed=False))
    parts = train(
        replace(config, micro_batch_size=micro_batch), TwoExits(normed=False), prepare=prepare
    )
    assert max(sizes[:-3]) == min(micro_batch, 32)  # the last three are validation
    for name, weight in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], weight, atol=1e-6, rtol=1e-5)
    expected = pytest.approx(whole["history"][0]["train/loss"], rel=1e-5)
    assert parts["history"][0]["train/loss"] == expected


def test_nan_in_a_micro_batch_stops_training_before_its_step():
    model = TwoExits()
    # Ten steps of two micro-batches, 80 validation images by 16, then the third step's first half.
    poison = NanOnCall(model, call=2 * 10 + 80 // 16 + 5)
    config = replace(QUICK, micro_batch_size=16)
    with pytest.raises(NonFiniteLoss, match="epoch 2 of 4, step 3 of 10"):
        train(config, model, prepare=poison)
    for parameter, then in zip(model.parameters(), poison.weights, strict=True):
        assert torch.equal(parameter, then)


def test_error_after_resuming_names_the_step_within_the_epoch():
    recorder = Recorder(4, with_notice=True)
    with pytest.raises(Killed):
        train(recorder=recorder)
    model = TwoExits()
    with pytest.raises(NonFiniteLoss, match="epoch 1 of 4, step 7 of 10"):
        train(model=model, prepare=NanOnCall(model, call=3), resume=recorder.snapshots[-1])


def test_nan_validation_loss_raises_an_error():
    model = TwoExits()
    with pytest.raises(NonFiniteLoss, match=r"validation loss is nan after epoch 1 of 4.*lr is"):
        train(model=model, prepare=NanOnCall(model, call=12))


def test_different_seeds_train_different_weights():
    first, second = train(TrainConfig(epochs=1)), train(TrainConfig(epochs=1, seed=1))
    assert not torch.equal(first["model"]["first.weight"], second["model"]["first.weight"])


def test_compiled_training_matches_eager_training(monkeypatch):
    # Traced and run without generated code, which takes minutes to build.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    config = TrainConfig(epochs=2, batch_size=32, micro_batch_size=16, optim=QUICK.optim)
    plain, compiled = train(config), train(replace(config, compile=True))
    assert plain["model"].keys() == compiled["model"].keys()
    for name, value in plain["model"].items():
        torch.testing.assert_close(compiled["model"][name], value, atol=1e-5, rtol=1e-5)
    for now, then in zip(compiled["history"], plain["history"], strict=True):
        assert now["val/loss"] == pytest.approx(then["val/loss"], rel=1e-4)


def test_compiled_ranet_is_a_single_graph_and_matches_eager_training(monkeypatch):
    in_one = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", in_one)
    config = TrainConfig(epochs=1, batch_size=32, optim=QUICK.optim)
    network = RANet(replace(small_ranet().config, num_blocks=1, extra_blocks=1))
    plain, compiled = (
        train(replace(config, compile=compiled), deepcopy(network), digits=32)
        for compiled in (False, True)
    )
    for name, value in plain["model"].items():
        torch.testing.assert_close(compiled["model"][name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_images", [4, 16])
def test_compiled_graphs_contain_no_constants_and_no_copies_between_devices(num_images):
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    network = RANet(replace(small_ranet().config, num_blocks=1, extra_blocks=1))
    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep)
    called = torch.compile(network, backend=backend, fullgraph=True, dynamic=False)
    called(torch.rand(num_images, 3, 16, 16)).sum().backward()
    assert len(graphs) == 2  # forward, backward
    for graph in graphs:
        nodes = list(graph.graph.nodes)
        assert len(nodes) > 200
        assert not [node for node in nodes if node.op == "get_attr"]
        names = " ".join(str(node.target) for node in nodes)
        assert "eye" not in names
        assert "device_put" not in names
    # Matrices of the resizes are computed on the device of the gradient.
    assert "aten.arange" in str(graphs[1].code).replace("torch.ops.", "")


GPU = pytest.param(
    torch.device("cuda"),
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")],
)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_nan_loss_stops_training_before_its_step(device):
    model = TwoExits().to(device)
    # Ten steps and three validation batches an epoch: the seventeenth call is step 4 of epoch 2.
    poison = NanOnCall(model, call=17)
    recorder = Recorder()
    with pytest.raises(NonFiniteLoss, match=r"epoch 2 of 4, step 4 of 10.*optim\.lr is 0\.05"):
        train(model=model, prepare=poison, recorder=recorder, device=device)
    assert all(
        torch.equal(p, then) for p, then in zip(model.parameters(), poison.weights, strict=True)
    )
    assert len(recorder.metrics) == 1


def test_diverging_training_is_stopped():
    config = TrainConfig(epochs=4, batch_size=32, optim=OptimConfig(lr=1e30))
    with pytest.raises(NonFiniteLoss, match=r"epoch 1 of 4, step [23] of 10"):
        train(config, TwoExits(normed=False))


def test_wrong_number_of_exit_weights_stops_training_at_the_first_step():
    with pytest.raises(ValueError, match=r"3 entries .* for 2 exits"):
        train(TrainConfig(loss=LossConfig(exit_weights=(1, 2, 3))))


def test_training_split_smaller_than_a_batch_is_rejected():
    with pytest.raises(ValueError, match=r"batch_size is 32, but there are only 20 training"):
        train(digits=20)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_and_weights_have_the_configured_memory_format(channels_last):
    layouts = set()

    class Recording(TwoExits):
        def forward(self, images):
            for tensor in (images, self.second.weight):
                layouts.add(tensor.is_contiguous(memory_format=torch.channels_last))
            return super().forward(images)

    train(TrainConfig(epochs=1, channels_last=channels_last), Recording())
    assert layouts == {channels_last}


def test_bfloat16_applies_to_the_forward_pass_only():
    dtypes = set()

    class Recording(TwoExits):
        def forward(self, images):
            logits = super().forward(images)
            dtypes.add(logits.dtype)
            return logits

    model = Recording()
    snapshot = train(TrainConfig(epochs=1, precision="bfloat16"), model)
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {s["momentum_buffer"].dtype for s in snapshot["optimizer"].values()} == {torch.float32}


def test_label_smoothing_and_exit_weights_change_the_training_loss():
    plain = train(TrainConfig(epochs=1, optim=OptimConfig(lr=1e-30)))["history"][0]
    weighted = TrainConfig(
        epochs=1, loss=LossConfig(exit_weights=(3, 3)), optim=OptimConfig(lr=1e-30)
    )
    tripled = train(weighted)["history"][0]
    assert tripled["train/loss"] == pytest.approx(3 * plain["train/loss"], rel=1e-5)
    assert tripled["val/loss"] == pytest.approx(3 * plain["val/loss"], rel=1e-5)
    smoothed = TrainConfig(
        epochs=1, loss=LossConfig(label_smoothing=0.3), optim=OptimConfig(lr=1e-30)
    )
    smooth = train(smoothed)["history"][0]
    assert smooth["train/loss"] != pytest.approx(plain["train/loss"], rel=1e-3)
    assert smooth["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-5)


def test_curriculum_changes_the_training_loss_but_not_the_validation_loss():
    def first_epoch(shift):
        config = TrainConfig(
            epochs=2, loss=LossConfig(curriculum=shift), optim=OptimConfig(lr=1e-30)
        )
        return train(config)["history"][0]

    early, even, late = (first_epoch(shift) for shift in (1.0, 0.0, -1.0))
    assert early["val/loss"] == late["val/loss"] == even["val/loss"]
    mean = (early["train/loss"] + late["train/loss"]) / 2
    assert mean == pytest.approx(even["train/loss"], rel=1e-5)
    assert early["train/loss"] != pytest.approx(late["train/loss"], rel=1e-4)


def test_additional_metrics_of_an_epoch_are_reported():
    history = train(measure=lambda model: {"parts": float(len(list(model.children())))})["history"]
    assert [metrics["parts"] for metrics in history] == [6.0] * QUICK.epochs
