"""Find the images of class folders, and count other files by reason."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from cluster.storage.s3 import ObjectStore, is_uri
from pipelines.data.sources.files import (
    describe_os_error,
    has_utf8_name,
    kind_problem,
    nfc,
    printable,
)

IMAGE_SUFFIXES = frozenset(
    (
        ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
        ".ppm", ".tif", ".tiff", ".webp",
    )
)  # fmt: skip
SERVICE_NAMES = frozenset(
    (
        "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle",
        "__macosx", "__pycache__", "desktop.ini", "ehthumbs.db", "icon\r", "lost+found",
        "system volume information", "thumbs.db",
    )
)  # fmt: skip
"""Files and folders of operating systems, storage servers and tools, in lower case."""
BESIDE = "beside the class folders"
HIDDEN = "hidden: a name on the path begins with a dot"
SERVICE = "of an operating system, storage server or tool"


class Entry(NamedTuple):
    """File, folder or broken entry below a folder."""

    path: str
    """Path below the folder; a folder's path ends with a slash."""
    size: int = 0
    """Bytes of the file."""
    stamp: str = ""
    """Time of the last change in nanoseconds, or the ETag of an object."""
    problem: str = ""
    """Reason why the entry cannot be read."""


@dataclass(frozen=True)
class Scan:
    """Files below a folder of class folders."""

    folder: str
    """Path or S3 URI."""
    classes: dict[str, list[Entry]]
    """Images of each class folder, by path below the class folder, sorted."""
    num_files: int
    """Number of files, including broken entries."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of skipped files by reason."""
    num_loose_images: int = 0
    """Number of images beside the class folders."""
    unreadable: tuple[str, ...] = ()
    """One sentence for each broken entry where an image or folder is expected."""


def scan_folder(folder: str) -> Scan:
    """Find the images in class folders at a path or S3 URI."""
    if is_uri(folder):
        with ObjectStore(connections=1) as store:
            found = (Entry(each.name, each.bytes, each.etag) for each in store.entries(folder))
            return _sort_entries(folder, found)
    return _sort_entries(folder, _walk(folder))


def images_below(folder: str) -> list[str]:
    """Return the paths of all images below a local folder, sorted."""
    return sorted(
        f"{folder.rstrip('/')}/{entry.path}"
        for entry in _walk(folder)
        if _suffix(entry.path) in IMAGE_SUFFIXES
        and _reason_to_skip(entry.path) in ("", BESIDE)
        and not entry.path.endswith("/")
    )


def _walk(folder: str) -> Iterator[Entry]:
    """Walk a folder and the folders that links lead to."""
    top = os.stat(folder)  # noqa: PTH116 - os is faster for a million files
    waiting = [("", frozenset({(top.st_dev, top.st_ino)}))]
    while waiting:
        prefix, above = waiting.pop()
        try:
            with os.scandir(f"{folder}/{prefix}") as listing:
                children = list(listing)
        except OSError as error:
            yield Entry(prefix or "/", problem=describe_os_error(error, f"{folder}/{prefix}"))
            continue
        for child in children:
            path = f"{prefix}{child.name}"
            try:
                status = child.stat()
            except OSError as error:
                yield Entry(path, problem=describe_os_error(error, child.path))
                continue
            if stat.S_ISDIR(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                is_loop = identity in above
                problem = "is a link to a folder that contains it" if is_loop else ""
                yield Entry(f"{path}/", problem=problem)
                if not is_loop:
                    waiting.append((f"{path}/", above | {identity}))
            elif kind := kind_problem(status.st_mode):
                yield Entry(path, problem=f"is {kind}, not an image file")
            else:
                yield Entry(path, status.st_size, str(status.st_mtime_ns))


def _sort_entries(folder: str, entries: Iterable[Entry]) -> Scan:
    classes: dict[str, list[Entry]] = {}
    skipped: Counter[str] = Counter()
    unreadable: list[str] = []
    num_files = num_loose = 0
    for entry in entries:
        is_folder = entry.path.endswith("/")
        reason = _reason_to_skip(entry.path)
        if is_folder and not entry.problem:
            if not reason:
                classes.setdefault(entry.path.partition("/")[0], [])
            continue
        num_files += 1
        if reason:
            skipped[reason] += 1
            num_loose += reason == BESIDE and _suffix(entry.path) in IMAGE_SUFFIXES
        elif entry.problem:
            unreadable.append(f"{printable(f'{folder}/{entry.path}')} {entry.problem}")
        else:
            class_name, _, rest = entry.path.partition("/")
            classes.setdefault(class_name, []).append(entry._replace(path=rest))
    for images in classes.values():
        images.sort()
    return Scan(folder, classes, num_files, skipped, num_loose, tuple(sorted(unreadable)))


def _reason_to_skip(path: str) -> str:
    """Return the reason to skip a file or folder; empty: none."""
    parts = path.rstrip("/").split("/")
    if any(part.startswith(".") for part in parts):
        return HIDDEN
    if any(part.lower() in SERVICE_NAMES for part in parts):
        return SERVICE
    if path.endswith("/"):
        return ""
    if len(parts) == 1:
        return BESIDE
    suffix = _suffix(path)
    if suffix in IMAGE_SUFFIXES:
        return ""
    return f"suffix {printable(suffix)}" if suffix else "without a suffix"


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def folders_by_class(scan: Scan) -> dict[str, str]:
    """Return the class folders by their names in NFC.

    Raises:
        ValueError: a name is not UTF-8, or two names differ only in their Unicode form.
    """
    folders: dict[str, str] = {}
    for folder in sorted(scan.classes):
        if not has_utf8_name(folder):
            raise ValueError(
                f"{scan.folder} has the class folder {printable(folder)!r}, whose name is not "
                "UTF-8; rename it, for example with convmv"
            )
        if nfc(folder) in folders:
            raise ValueError(
                f"{scan.folder} has two class folders named {nfc(folder)!r}, in different Unicode "
                "forms; move the images of one into the other"
            )
        folders[nfc(folder)] = folder
    return folders
