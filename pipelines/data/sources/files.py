"""Read files of users' folders: names, kinds of files, and errors."""

import os
import stat
import unicodedata
from pathlib import Path

from pipelines.data.sources.images import UnreadableImageError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def printable(name: str) -> str:
    """Return a file name with bytes that are not UTF-8 as escapes."""
    return os.fsencode(name).decode(errors="backslashreplace")


def nfc(name: str) -> str:
    """Return a name in Unicode's composed form; macOS decomposes names."""
    return unicodedata.normalize("NFC", name)


def has_utf8_name(name: str) -> bool:
    """Return whether the bytes of a file name are valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_problem(mode: int) -> str:
    """Return the kind of a path that is no file; otherwise empty."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "not a file")


def read_image_file(path: str) -> bytes:
    """Read an image file.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableImageError: the path is no file, a broken link, or cannot be read.
    """
    name = printable(path)
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - called for each of a million files
        if problem := kind_problem(mode):
            raise UnreadableImageError(f"{name} is {problem}, not an image file")
        with open(path, "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not Path(path).is_symlink():
            raise FileNotFoundError(f"{name}: no such file") from None
        raise UnreadableImageError(f"{name} {describe_os_error(error, path)}") from error


def describe_os_error(error: OSError, path: str) -> str:
    """Describe why a file or folder cannot be read."""
    if isinstance(error, FileNotFoundError) and Path(path).is_symlink():
        return f"is a broken link to {printable(os.readlink(path))}"  # noqa: PTH115
    return f"cannot be read: {error.strerror}"
