"""Copies of batches to a GPU, with recorded streams and events."""

from contextlib import nullcontext

import pytest
import torch

from pipelines.data.loading import streaming
from pipelines.data.loading.device_copy import CopyStream
from pipelines.data.loading.streaming import StreamingBatches
from tests.support.image_files import batches_of, read_epoch, with_settings


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Calls of streams and events, in order; copies stay on the CPU."""
    made: list[str] = []

    class Event:
        number = 0

        def __init__(self) -> None:
            Event.number += 1
            self.number = Event.number - 1

        def record(self, stream: object) -> None:
            made.append(f"copy {self.number}")

        def synchronize(self) -> None:
            made.append(f"reuse {self.number}")

    class Stream:
        def wait_event(self, event: Event) -> None:
            made.append(f"wait {event.number}")

    def forbidden(*_: object) -> None:
        pytest.fail("the host waits for the GPU")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", forbidden)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: made.append("keep"))
    to_cpu = CopyStream(torch.device("cpu"))
    monkeypatch.setattr(streaming, "CopyStream", lambda _: to_cpu)
    return made


@pytest.fixture
def batches(prepared, monkeypatch) -> StreamingBatches:
    """Batches for a GPU; the pinned memory is ordinary memory."""
    made = batches_of(with_settings(prepared, decode_threads=1), batch_size=2)
    assert isinstance(made, StreamingBatches)
    made.epoch(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    made.device = torch.device("cuda")
    return made


def test_each_copy_starts_before_the_batch_before_it_is_handed_out(batches, calls):
    with batches.epoch(0) as reader:
        for number, _ in enumerate(reader):
            calls.append(f"use {number}")
    assert sum(call.startswith("use") for call in calls) == 10
    for number in range(9):
        assert calls.index(f"copy {number + 1}") < calls.index(f"use {number}")
        assert calls.index(f"wait {number}") < calls.index(f"use {number}")
    assert calls.count("keep") == 20  # images and labels


def test_host_waits_only_for_copies_of_batches_that_were_handed_out(batches, calls):
    with batches.epoch(0) as reader:
        for number, _ in enumerate(reader):
            calls.append(f"use {number}")
    reused = [call for call in calls if call.startswith("reuse")]
    assert reused == [f"reuse {number}" for number in range(7)]  # a ring of three
    for number in range(7):
        assert calls.index(f"reuse {number}") > calls.index(f"wait {number}")


def test_batches_on_the_device_equal_those_on_the_cpu(prepared, batches, calls):
    expected = read_epoch(batches_of(with_settings(prepared, decode_threads=1), batch_size=2), 1)
    for ours, theirs in zip(read_epoch(batches, 1), expected, strict=True):
        assert torch.equal(ours, theirs)
