"""TF32 on NVIDIA GPUs: float32 products with 10 bits of mantissa."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tf32(*, allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 products and convolutions.

    PyTorch allows TF32 in convolutions by default. Confidences then differ from those on a CPU by
    more than rounding, and so do the exits at which images leave a cascade.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
