"""FFCV's format, fields and C library, imported without what it would compile.

FFCV keeps the numbers of its image modes in a dictionary of numba's, for which it compiles anew in
every process that imports it, for four to five seconds. All who read it do so from Python.
"""

import numba.typed

numba.typed.Dict = dict  # pyright: ignore[reportAttributeAccessIssue]: numba finds it when asked
try:
    import ffcv._libffcv
    from ffcv.fields import IntField, RGBImageField
    from ffcv.reader import Reader
    from ffcv.types import (
        ALLOC_TABLE_TYPE,
        CURRENT_VERSION,
        TYPE_ID_HANDLER,
        FieldDescType,
        HeaderType,
        get_metadata_type,
    )
finally:
    del numba.typed.Dict  # pyright: ignore[reportAttributeAccessIssue]

LIBRARY_FILE = ffcv._libffcv.__file__
"""FFCV's C functions."""

__all__ = [
    "ALLOC_TABLE_TYPE",
    "CURRENT_VERSION",
    "LIBRARY_FILE",
    "TYPE_ID_HANDLER",
    "FieldDescType",
    "HeaderType",
    "IntField",
    "RGBImageField",
    "Reader",
    "get_metadata_type",
]
