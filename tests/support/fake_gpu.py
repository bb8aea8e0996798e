"""Fake CUDA tensors, and checks of the operators that run on them.

`FakeTensorMode` computes shapes, strides and devices only, so the steps of the largest network take
seconds and no memory. Everything but the backward pass runs on fake CUDA tensors; autograd's engine
needs a driver, so backward passes run on fake CPU tensors.
"""

import math
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, cast
from unittest import mock

import torch
import torch.cuda.amp.common
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ranet.model.kernels import resize_weights

READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal")
"""Operators whose result the host reads."""


class GpuOperators(TorchDispatchMode):
    """Dispatch mode that counts operators and fails on slow ones.

    Raises:
        AssertionError: the host waits for the device, a copy between host and device is blocking,
            or a batch norm reads another layout than channels-last. The traceback shows the line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.num_reads = 0
        self._may_read = False

    @property
    def total(self) -> int:
        """Number of operators so far, without views, which start no kernel."""
        return sum(self.counts.values())

    @contextmanager
    def reads_allowed(self) -> Iterator[None]:
        """Allow the host to read results, and blocking copies."""
        self._may_read, before = True, self._may_read
        try:
            yield
        finally:
            self._may_read = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if func.namespace == "aten" and not func.is_view:
            self.counts[name] += 1
        if name in READS and args[0].is_cuda:
            return self._read(name, args[0])
        self._check_copy(name, args, kwargs)
        if "batch_norm" in name:
            self._check_layout(name, args[0])
        if name == "_fused_sgd_":  # has no fake form
            devices = {t.device.type for t in tree_leaves(args) if isinstance(t, Tensor)}
            assert len(devices) == 1, f"the fused optimizer got tensors on {devices}"
            return None
        return _as_on_gpu(name, args, func(*args, **kwargs))

    def _read(self, name: str, tensor: Tensor) -> Any:
        assert self._may_read, f"{name} waits for the device"
        self.num_reads += 1
        if name == "nonzero":  # as if half of the values were set
            return tensor.new_empty((tensor.numel() // 2, tensor.ndim), dtype=torch.int64)
        return 1.0 if tensor.dtype.is_floating_point else 1

    def _check_copy(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        if name == "_to_copy":
            target, source = kwargs.get("device"), args[0]
            is_async = kwargs.get("non_blocking")
        elif name == "copy_":
            target, source = args[0].device, args[1]
            is_async = kwargs.get("non_blocking") or args[2:3] == (True,)
        else:
            return
        if target is not None and torch.device(target).type != source.device.type:
            message = f"blocking copy of {tuple(source.shape)} from {source.device} to {target}"
            assert is_async or self._may_read, message

    def _check_layout(self, name: str, features: Tensor) -> None:
        """Check features on a GPU, or a gradient on any device."""
        if features.ndim == 4 and (features.is_cuda or name.endswith("backward")):
            is_last = features.is_contiguous(memory_format=torch.channels_last)
            message = f"{name} reads {tuple(features.shape)} with strides {features.stride()}"
            assert is_last, message


def _as_on_gpu(name: str, args: Any, output: Any) -> Any:
    """Return an output in the layout that CUDA kernels give it."""
    if name == "convolution":
        # cuDNN computes in channels-last if the features or a weight with more than one pixel are.
        features, weight = (each.stride(1) == 1 for each in args[:2])
        is_last = features or (weight and args[1].shape[-1] > 1)
    elif name == "upsample_bilinear2d":
        is_last = args[0].stride(1) == 1
    else:
        return output
    return output.contiguous(memory_format=torch.channels_last) if is_last else output


class LiveMemory(TorchDispatchMode):
    """Dispatch mode that follows the memory of live tensors.

    Each storage is rounded up to 512 bytes, as by CUDA's caching allocator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return output

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        num_bytes = 512 * math.ceil(storage.nbytes() / 512)

        def free(_: object) -> None:
            del self._known[key]
            self.now -= num_bytes

        self._known[key] = weakref.ref(storage, free)
        self.now += num_bytes
        self.peak = max(self.peak, self.now)


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Create fake tensors only, on any device, without a driver."""
    with ExitStack() as stack:
        for target, value in (
            ("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            ("torch.cuda.is_bf16_supported", lambda *_, **__: True),
            # Dispatch modes below a real inference mode see no operators.
            ("torch.inference_mode.__enter__", _enter_no_grad),
            ("torch.inference_mode.__exit__", _exit_no_grad),
            ("torch._subclasses.fake_tensor.FakeTensor.__deepcopy__", _copy_fake),
            # Fake tensors of a module cannot be converted; `as_fake` makes them as needed.
            ("torch.nn.Module.to", lambda module, *_, **__: module),
        ):
            stack.enter_context(mock.patch(target, value, create=True))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        # Neither real tensors nor fake ones stay in the cache for the others.
        resize_weights.cache_clear()
        stack.callback(resize_weights.cache_clear)
        yield


def _copy_fake(tensor: Tensor, _: dict[int, Any]) -> Tensor:
    copied = torch.empty_like(tensor)
    return nn.Parameter(copied) if isinstance(tensor, nn.Parameter) else copied


def _enter_no_grad(self: Any) -> None:
    self._inference_mode_context = torch.no_grad() if self.mode else nullcontext()
    self._inference_mode_context.__enter__()


def _exit_no_grad(self: Any, *error: object) -> None:
    self._inference_mode_context.__exit__(*error)


def as_fake(module: nn.Module, device: str = "cuda") -> nn.Module:
    """Replace tensors of a module by fake channels-last ones, in place."""
    for each in module.modules():
        for tensors in cast(list[dict[str, Any]], [each._parameters, each._buffers]):
            for name, tensor in tensors.items():
                if tensor is not None:
                    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
                    fake = torch.empty(
                        tensor.size(), dtype=tensor.dtype, device=device, memory_format=layout
                    )
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(fake) if is_parameter else fake
                    if name in each.__dict__:  # a second reference, for speed
                        each.__dict__[name] = fake
    return module


class FakeBatches:
    """Batches of fake images, after which the host may read results."""

    def __init__(
        self, operators: GpuOperators, sizes: tuple[int, ...], image_size: int, device: str = "cuda"
    ) -> None:
        self.num_samples: Any = mock.ANY  # fake tensors have no values to compare
        self._operators, self._sizes = operators, sizes
        self._image_size, self._device = image_size, device

    def __len__(self) -> int:
        return len(self._sizes)

    @contextmanager
    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        yield map(self._batch, self._sizes)
        self._operators._may_read = True

    def _batch(self, num_images: int) -> tuple[Tensor, Tensor]:
        return fake_batch(num_images, self._image_size, self._device)


def fake_batch(num_images: int, image_size: int, device: str = "cuda") -> tuple[Tensor, Tensor]:
    """Return uint8 images in the layout of the loaders, and labels."""
    images = torch.empty((num_images, image_size, image_size, 3), dtype=torch.uint8, device=device)
    labels = torch.empty(num_images, dtype=torch.int64, device=device)
    return images.permute(0, 3, 1, 2), labels
