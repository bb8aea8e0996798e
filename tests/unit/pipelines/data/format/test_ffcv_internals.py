"""Private parts of FFCV and numba that must exist after an upgrade."""

import importlib
import importlib.metadata
import os
import subprocess
import sys

import pytest

from pipelines.data.format.ffcv_internals import (
    C_FUNCTIONS,
    c_function_addresses,
    file_format,
    image_field,
    load_ffcv,
)
from tests.support.paths import PROJECT


@pytest.mark.parametrize(
    ("module", "name", "user"),
    [
        ("numba.typed", "Dict", "load_ffcv"),
        ("numba.config", "THREADING_LAYER", "load_ffcv"),
        ("numba.types", "ExternalFunction", "pipelines.data.loading.decoding"),
        ("ffcv.fields.rgb_image", "IMAGE_MODES", "load_ffcv"),
        ("ffcv.fields", "IntField", "file_format"),
        ("ffcv.fields", "RGBImageField", "image_field"),
        ("ffcv.types", "ALLOC_TABLE_TYPE", "file_format"),
        ("ffcv.types", "CURRENT_VERSION", "file_format"),
        ("ffcv.types", "FieldDescType", "file_format"),
        ("ffcv.types", "HeaderType", "file_format"),
        ("ffcv.types", "TYPE_ID_HANDLER", "file_format"),
        ("ffcv.types", "get_metadata_type", "file_format"),
        ("ffcv.reader", "Reader", "read_tables"),
        ("ffcv._libffcv", "__file__", "c_function_addresses"),
    ],
)
def test_private_name_exists(module, name, user):
    load_ffcv()
    package = module.partition(".")[0]
    version = importlib.metadata.version(package)
    parent, _, child = module.rpartition(".")
    found = getattr(importlib.import_module(parent), child, None) or importlib.import_module(module)
    assert hasattr(found, name), f"{package} {version} has no {module}.{name}; adapt {user}"


def test_file_format_is_version_2_with_known_layout():
    layout = file_format()
    assert layout.version == 2, "FFCV's file format changed; adapt pipelines.data.format.beton"
    assert set(layout.metadata["f0"].names or ()) == {"mode", "height", "width", "data_ptr"}
    assert layout.allocation.names == ("sample_id", "ptr", "size")
    assert {layout.type_ids[1], layout.type_ids[2]} == {field for _, field in layout.fields}


def test_image_field_has_an_encode_method():
    field = image_field(is_jpeg=False, max_side=0, jpeg_quality=90)
    assert callable(getattr(field, "encode", None)), "adapt pipelines.data.format.encoding"


def test_c_functions_have_the_expected_parameters():
    assert set(c_function_addresses()) == set(C_FUNCTIONS)
    from ffcv import libffcv

    message = "a C function of FFCV has other parameters; adapt pipelines.data.loading.decoding"
    assert len(libffcv.ctypes_resize.argtypes) == 11, message
    assert len(libffcv.ctypes_imdecode.argtypes) == 13, message


def test_ffcv_is_imported_without_numba_dictionaries():
    load_ffcv()
    import numba.typed
    from ffcv.fields.rgb_image import IMAGE_MODES

    assert type(IMAGE_MODES) is dict
    assert numba.typed.Dict is not dict


def test_importing_the_data_modules_has_no_side_effects_and_first_use_selects_threads():
    script = """
import os, sys
import pipelines.data.preparation.prepare, pipelines.data.loading.loader
assert "ffcv" not in sys.modules
assert "NUMBA_THREADING_LAYER" not in os.environ
from pipelines.data.format.ffcv_internals import load_ffcv
load_ffcv()
import numba
print(numba.threading_layer())
"""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_THREADING_LAYER"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "workqueue\n"
