"""Batch decoder: FFCV's C decoder and resizer in one compiled loop.

The crop boxes are inputs, so the loop needs no random numbers. numba compiles the loop in about a
second and caches it on disk.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from llvmlite import binding
from numba import njit, types

from pipelines.data.format.ffcv_internals import c_function_addresses

# numba can cache a compiled function on disk only if it calls C functions by name.
_RESIZE = types.ExternalFunction("ranet_ffcv_resize", types.int32(*[types.int64] * 11))
_IMDECODE = types.ExternalFunction(
    "ranet_ffcv_imdecode",
    types.int32(
        types.voidptr,
        types.uint64,
        types.uint32,
        types.uint32,
        types.voidptr,
        *[types.uint32] * 6,
        types.boolean,
        types.boolean,
    ),
)


@cache
def batch_decoder() -> Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]:
    """Return `_decode_batch`, compiled to run without the GIL."""
    for name, address in c_function_addresses().items():
        binding.add_symbol(f"ranet_ffcv_{name}", address)
    return njit(nogil=True, cache=True)(_decode_batch)


def _decode_batch(
    data: np.ndarray, table: np.ndarray, samples: np.ndarray, boxes: np.ndarray, images: np.ndarray
) -> int:
    """Decode the boxes of some samples into images (batch, size, size, 3).

    A box of the size of the output is copied, with black pixels outside the image; any other box
    is resized. Returns the first sample with a damaged JPEG, or -1.
    """
    size = images.shape[1]
    for row in range(len(samples)):
        start, length, height, width, is_jpeg = table[samples[row]]
        top, left, box_height, box_width, mirrored = boxes[row]
        source = data[start : start + length]
        if is_jpeg:
            pixels = np.empty((height, width, 3), np.uint8)
            failed = _IMDECODE(
                source.ctypes.data, source.size, height, width, pixels.ctypes.data,
                height, width, 0, 0, 1, 1, False, False,
            )  # fmt: skip
            if failed:
                return samples[row]
        else:
            pixels = source.reshape(height, width, 3)
        image = images[row]
        if box_height == size and box_width == size:
            for y in range(size):
                for x in range(size):
                    from_y, from_x = top + y, left + x
                    inside = 0 <= from_y < height and 0 <= from_x < width
                    for channel in range(3):
                        image[y, x, channel] = pixels[from_y, from_x, channel] if inside else 0
        else:
            _RESIZE(
                0, pixels.ctypes.data, height, width, top, top + box_height,
                left, left + box_width, image.ctypes.data, size, size,
            )  # fmt: skip
        if mirrored:
            for y in range(size):
                for x in range(size // 2):
                    for channel in range(3):
                        swapped = image[y, x, channel]
                        image[y, x, channel] = image[y, size - 1 - x, channel]
                        image[y, size - 1 - x, channel] = swapped
    return -1
