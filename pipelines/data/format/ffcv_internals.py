"""Private parts of FFCV 1.0.2 and numba 0.68, one function per use.

FFCV is imported by the first call of one of the functions, not by importing this module.
tests/unit/pipelines/data/format/test_ffcv_internals.py names whatever is missing after an upgrade.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ffcv.fields import RGBImageField

C_FUNCTIONS = ("resize", "imdecode")


@cache
def load_ffcv() -> None:
    """Import FFCV, with two settings of numba that the import needs.

    Every process that uses FFCV must call this function before its first import of `ffcv`.
    """
    import numba.typed
    from numba.core import config

    # FFCV 1.0.2 starts numba's threads while it is imported. The threads of TBB, which OpenCV may
    # install, keep a process that is limited to one CPU from exiting.
    if "NUMBA_THREADING_LAYER" not in os.environ:
        config.THREADING_LAYER = "workqueue"  # pyright: ignore[reportAttributeAccessIssue]
    # FFCV 1.0.2 keeps the numbers of its image modes in a numba dictionary, for which numba 0.68
    # compiles code for four to five seconds in every process. All users read it from Python, so a
    # plain dict is sufficient. numba.typed imports its own class again after the deletion.
    numba.typed.Dict = dict  # pyright: ignore[reportAttributeAccessIssue]
    try:
        import ffcv.fields  # noqa: F401 - for its side effects
    finally:
        del numba.typed.Dict  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class FileFormat:
    """Types of the parts of a .beton file."""

    version: int
    """Version of the format."""
    header: np.dtype
    """Type of the header."""
    field_descriptor: np.dtype
    """Type of the description of a field."""
    allocation: np.dtype
    """Type of an entry of the allocation table."""
    metadata: np.dtype
    """Type of the metadata of a sample with our fields: f0 for the image, f1 for the label."""
    fields: tuple[tuple[str, type], ...]
    """Name and class of our fields."""
    type_ids: dict[int, type | None]
    """Class of a field by its number in the file."""

    @property
    def metadata_start(self) -> int:
        """Offset of the metadata in the file."""
        return self.header.itemsize + len(self.fields) * self.field_descriptor.itemsize


@cache
def file_format() -> FileFormat:
    """Return FFCV's file format.

    `ffcv.types` (FFCV 1.0.2) is not documented, but our writer must produce the same bytes.
    """
    load_ffcv()
    from ffcv import types
    from ffcv.fields import IntField, RGBImageField

    return FileFormat(
        version=types.CURRENT_VERSION,
        header=types.HeaderType,
        field_descriptor=types.FieldDescType,
        allocation=types.ALLOC_TABLE_TYPE,
        metadata=types.get_metadata_type([RGBImageField(), IntField()]),
        fields=(("image", RGBImageField), ("label", IntField)),
        type_ids=types.TYPE_ID_HANDLER,
    )


def image_field(*, is_jpeg: bool, max_side: int, jpeg_quality: int) -> "RGBImageField":
    """Return FFCV's encoder of images; its `encode` (FFCV 1.0.2) is not documented.

    Args:
        is_jpeg: encode as JPEG instead of raw pixels.
        max_side: max longer side of the encoded images, in pixels; 0: no maximum.
        jpeg_quality: JPEG quality, from 1 to 100.
    """
    load_ffcv()
    from ffcv.fields import RGBImageField

    return RGBImageField(
        write_mode="jpg" if is_jpeg else "raw",
        max_resolution=max_side or None,  # pyright: ignore[reportArgumentType]
        jpeg_quality=jpeg_quality,
    )


def accepts_jpeg(encoded: bytes, height: int, width: int) -> bool:
    """Return whether FFCV's decoder accepts a JPEG that PIL can decode.

    FFCV 1.0.2 rejects files on which libjpeg only warns. An eighth of each side is decoded, because
    the warnings concern the encoded data and the pixels are not needed.
    """
    load_ffcv()
    from ffcv.libffcv import imdecode

    pixels = np.empty((-(-height // 8), -(-width // 8), 3), np.uint8)
    source = np.frombuffer(encoded, np.uint8)
    return imdecode(source, pixels, height, width, height, width, scale_factor_denom=8) == 0


def read_tables(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the metadata and the allocation table of a file.

    `ffcv.reader` (FFCV 1.0.2) is not documented; using it shows that FFCV can read our files.
    """
    load_ffcv()
    from ffcv.reader import Reader

    reader = Reader(path)
    return reader.metadata, reader.alloc_table


def c_function_addresses() -> dict[str, int]:
    """Return pointers to FFCV's C functions `resize` and `imdecode`.

    FFCV 1.0.2 calls them only one image at a time through ctypes; compiled code calls them faster.
    """
    load_ffcv()
    import ffcv._libffcv

    library = ctypes.CDLL(ffcv._libffcv.__file__)
    addresses = {
        name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in C_FUNCTIONS
    }
    return {name: address for name, address in addresses.items() if address is not None}
