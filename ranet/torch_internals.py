"""Private APIs of PyTorch 2.14, one function or class per use."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.optim import SGD


def storage_id(tensor: Tensor) -> int:
    """Return a number that tensors with the same memory share.

    It works on every device: `data_ptr` is 0 for all tensors on the meta device.
    """
    return tensor.untyped_storage()._cdata


def skip_updates_if(optimizer: SGD, found_inf: Tensor) -> None:
    """Let a fused optimizer skip updates if the scalar `found_inf` is set.

    This is the attribute that `torch.amp.GradScaler` sets; no method sets it.
    """
    optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]


def convert(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Replace every parameter and buffer of a module by `fn` of it.

    `Module.to` neither copies nor chooses a memory format by the number of dimensions.
    """
    module._apply(fn)


class BoundModule(nn.Module):
    """Module that keeps its buffers and submodules in its `__dict__` as well.

    Python searches `__dict__` first; `nn.Module.__getattr__` is called only for missing names and
    costs more than a small operation. Conversions (`to`, `cuda`, ...) pass through `_apply`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(_bind)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "BoundModule":
        super()._apply(fn, recurse)
        _bind(self)
        return self


def _bind(module: nn.Module, *_: object) -> None:
    module.__dict__.update(module._buffers)
    module.__dict__.update(module._modules)
