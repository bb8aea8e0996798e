"""Atomic writes: complete files, no leftovers, permissions."""

import pytest

from cluster.storage.files import atomic_write


@pytest.mark.parametrize("unique", [False, True])
def test_file_is_replaced_at_the_end_of_the_context(tmp_path, unique):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path, unique=unique, mode=0o600) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_exception_keeps_the_old_file_and_removes_the_temporary_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as part:  # noqa: PT012
        part.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
