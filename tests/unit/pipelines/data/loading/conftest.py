"""Checks around every test of the loaders."""

import threading

import pytest


def decoding_threads() -> set[str]:
    return {
        thread.name for thread in threading.enumerate() if thread is not threading.main_thread()
    }


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = decoding_threads()
    yield
    assert decoding_threads() == before
