"""Speed of training steps, full passes and cascade against the plain form."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from benchmarks.cuda.items import Item
from benchmarks.plain import PlainRANet
from benchmarks.reference import random_network
from ranet import Cascade, ModelConfig, RANet, fit_thresholds, mult_adds
from ranet.inference.precision import tf32
from ranet.training.losses import exit_loss

SHARES = (0.25, 0.5, 0.75)
"""Mean costs of the cascade, as shares of the full pass."""

Work = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Contender:
    """Form of the network, precision and compilation."""

    name: str
    is_plain: bool = False
    is_amp: bool = False
    channels_last: bool = True
    compile_mode: str | None = None
    """Mode of torch.compile; None: eager. `reduce-overhead` uses CUDA graphs."""


PLAIN = Contender("plain float32", is_plain=True, channels_last=False)
CONTENDERS = (
    PLAIN,
    Contender("plain AMP channels-last", is_plain=True, is_amp=True),
    Contender("ours float32"),
    Contender("ours AMP", is_amp=True),
)
COMPILED = (
    Contender("ours AMP compiled", is_amp=True, compile_mode="default"),
    Contender("ours AMP CUDA graphs", is_amp=True, compile_mode="reduce-overhead"),
)


def speed_items(
    networks: dict[str, ModelConfig],
    device: torch.device,
    *,
    batches: dict[str, tuple[int, ...]],
    rounds: int,
) -> Iterator[Item]:
    """Yield training steps and full passes, eager first, compiled after them."""
    for contenders, suffix in ((CONTENDERS, ""), ((PLAIN, *COMPILED), ", compiled")):
        for name, config in networks.items():
            for work in ("train", "evaluate"):
                for batch in batches[name]:
                    measure = partial(_compare, config, work, batch, contenders, device, rounds)
                    yield Item("speed", f"{work} {name} batch {batch}{suffix}", measure)
    for name, config in networks.items():
        for batch in (1, 16, max(batches[name])):
            measure = partial(_cascade, config, batch, device, rounds)
            yield Item("cascade", f"{name} batch {batch}", measure)
    for name, config in networks.items():
        measure = partial(_profile, config, max(batches[name]), device)
        yield Item("profile", f"train {name} batch {max(batches[name])}", measure)


def make_step(
    config: ModelConfig, work: Work, batch: int, contender: Contender, device: torch.device
) -> Callable[[], object]:
    """Build a contender's training step (without optimizer) or full pass."""
    torch.manual_seed(0)
    model: nn.Module = PlainRANet(config) if contender.is_plain else RANet(config)
    layout = torch.channels_last if contender.channels_last else torch.contiguous_format
    model.to(device).to(memory_format=layout)
    images = torch.randn(batch, 3, config.image_size, config.image_size, device=device)
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(config.num_classes, (batch,), device=device)
    is_amp = contender.is_amp
    if work == "evaluate":
        model.eval()
        if isinstance(model, RANet):
            model = model.optimized(torch.bfloat16 if is_amp else torch.float32)
            is_amp = False  # the weights are bfloat16 already
    called = model
    if contender.compile_mode and device.type == "cuda":
        called = torch.compile(model, mode=contender.compile_mode, dynamic=False)
    elif contender.compile_mode:  # generating code for a CPU takes minutes
        called = torch.compile(model, backend="eager", dynamic=False)

    def evaluate() -> object:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=is_amp):
            return called(images)

    def train() -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_amp):
            logits = called(images)
        exit_loss(logits, labels).backward()
        model.zero_grad(set_to_none=True)
        return None

    return train if work == "train" else evaluate


def time_step(step: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the milliseconds of one step, the mean of several."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / repeats
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    return 1000 * (time.perf_counter() - started) / repeats


def _compare(
    config: ModelConfig,
    work: Work,
    batch: int,
    contenders: tuple[Contender, ...],
    device: torch.device,
    rounds: int,
) -> dict[str, Any]:
    """Time the contenders in turn; ratios are medians over the rounds."""
    values: dict[str, Any] = {}
    steps: dict[str, Callable[[], object]] = {}
    is_cuda = device.type == "cuda"
    with tf32(allowed=True):
        for contender in contenders:
            steps[contender.name] = make_step(config, work, batch, contender, device)
            if is_cuda:
                torch.cuda.reset_peak_memory_stats()
            for _ in range(3 if is_cuda else 1):
                steps[contender.name]()
            if is_cuda:
                peak = torch.cuda.max_memory_allocated() / 2**30
                values[f"{contender.name} peak GiB"] = peak
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                times[name].append(time_step(step, device, 5 if is_cuda else 1))
    for name, milliseconds in times.items():
        values[f"{name} ms"] = statistics.median(milliseconds)
        ratios = [a / b for a, b in zip(times[PLAIN.name], milliseconds, strict=True)]
        if name != PLAIN.name:
            values[f"{name} ratio"] = statistics.median(ratios)
    return values


@torch.inference_mode()
def _cascade(config: ModelConfig, batch: int, device: torch.device, rounds: int) -> dict[str, Any]:
    """Measure latencies of the cascade and of the full pass, in turn."""
    model, _ = random_network(config)
    fused = model.to(device).optimized(torch.bfloat16 if device.type == "cuda" else None)
    num_images = max(batch, 64)
    images = torch.randn(num_images, 3, config.image_size, config.image_size, device=device)
    confidences = fused(images).float().softmax(dim=-1).amax(dim=-1).cpu()
    costs = mult_adds(config)
    correct = torch.ones_like(confidences, dtype=torch.bool)  # the geometric rule does not read it
    cascades = {
        share: Cascade(
            fused,
            fit_thresholds(confidences, correct, costs, share * costs[-1], rule="geometric"),
        )
        for share in SHARES
        if share * costs[-1] >= costs[0]
    }
    calls: dict[str, Callable[[Tensor], object]] = {"full": fused}
    calls |= {f"{share:.0%}": cascade for share, cascade in cascades.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for part in images.split(batch):
            for name, call in calls.items():
                started = time.perf_counter()
                call(part)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number:
                    times[name].append(1000 * (time.perf_counter() - started))
    values: dict[str, Any] = {}
    for name, milliseconds in times.items():
        cuts = statistics.quantiles(milliseconds, n=100, method="inclusive")
        values |= {f"{name} p{p} ms": cuts[p - 1] for p in (50, 95, 99)}
        if name != "full":
            values[f"{name} time share"] = sum(milliseconds) / sum(times["full"])
            share = cascades[float(name.rstrip("%")) / 100](images).mult_adds.double().mean()
            values[f"{name} cost share"] = share.item() / costs[-1]
    return values


class _Traffic(TorchDispatchMode):
    """Counter of the bytes that operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0
        self.num_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [
                each for each in tree_iter((args, kwargs, result)) if isinstance(each, Tensor)
            ]
            self.num_bytes += sum(each.numel() * each.element_size() for each in tensors)
            self.num_operations += 1
        return result


def _profile(config: ModelConfig, batch: int, device: torch.device) -> dict[str, Any]:
    """Find the most expensive kernels and the share of memory bandwidth."""
    step = make_step(config, "train", batch, Contender("ours AMP", is_amp=True), device)
    step()
    with _Traffic() as traffic:
        step()
    milliseconds = time_step(step, device, 5)
    bandwidth = _copy_bandwidth(device)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
    attribute = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, attribute))[:10]
    kernels = {
        f"kernel {number}": f"{event.key[:60]} {getattr(event, attribute) / 1000:.3f} ms"
        for number, event in enumerate(events, start=1)
    }
    return {
        "ms": milliseconds,
        "operations": traffic.num_operations,
        "traffic GB": traffic.num_bytes / 1e9,
        "copy bandwidth GB/s": bandwidth / 1e9,
        "share of bandwidth": traffic.num_bytes / (milliseconds / 1000) / bandwidth,
        **kernels,
    }


def _copy_bandwidth(device: torch.device) -> float:
    """Measure bytes read and written per second in a large copy."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    milliseconds = time_step(lambda: target.copy_(source), device, 5)
    return 2 * source.numel() * 4 / (milliseconds / 1000)
