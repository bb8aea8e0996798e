"""Private parts of FFCV and numba."""


def test_ffcv_is_imported_without_numba_dictionaries():
    import numba.typed
    from ffcv.fields.rgb_image import IMAGE_MODES

    assert type(IMAGE_MODES) is dict
    assert numba.typed.Dict is not dict
