"""Private APIs of PyTorch that an upgrade may remove or change."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from ranet import torch_internals

REMEDY = f"changed in PyTorch {torch.__version__}: replace its use in ranet/torch_internals.py"


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_storage_id_is_shared_by_views_only(device: str):
    try:
        first, other = torch.empty(4, device=device), torch.empty(4, device=device)
        ids = [torch_internals.storage_id(each) for each in (first, first[2:], other)]
    except AttributeError as error:
        pytest.fail(f"UntypedStorage._cdata {REMEDY}: {error}")
    assert ids[0] == ids[1] != ids[2], f"UntypedStorage._cdata {REMEDY}"


def test_fused_optimizer_skips_updates_if_found_inf_is_set():
    weight = nn.Parameter(torch.ones(3))
    optimizer = SGD([weight], lr=1.0, fused=True)
    weight.grad = torch.ones(3)
    found_inf = torch.ones(())
    torch_internals.skip_updates_if(optimizer, found_inf)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3)), f"found_inf of fused SGD {REMEDY}"
    found_inf.zero_()
    optimizer.step()
    assert torch.equal(weight, torch.zeros(3)), f"found_inf of fused SGD {REMEDY}"


class Bound(torch_internals.BoundModule):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.ones(2))
        self.inner = nn.Linear(1, 1)


def test_conversions_and_loading_bind_the_new_tensors():
    module = Bound()
    module.double()
    assert module.__dict__["values"].dtype == torch.float64, f"Module._apply {REMEDY}"
    assert module.__dict__["inner"] is module.inner, f"Module._modules {REMEDY}"
    module.load_state_dict({**module.state_dict(), "values": torch.zeros(2)})
    assert torch.equal(module.__dict__["values"], torch.zeros(2).double()), f"_buffers {REMEDY}"


def test_convert_replaces_parameters_and_buffers():
    module = Bound()
    torch_internals.convert(module, lambda tensor: tensor + 1)
    assert torch.equal(module.__dict__["values"], torch.full((2,), 2.0)), f"_apply {REMEDY}"
