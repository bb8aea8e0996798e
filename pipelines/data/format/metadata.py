"""What is said beside a prepared file: its classes, counts, checksum and settings."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.storage.files import atomic_write
from cluster.storage.s3 import START_TIMEOUT_SECONDS, ObjectStore, is_uri
from pipelines.data.config import SPLITS, DataConfig, Split, prepared_path, prepared_settings

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SplitMetadata:
    """Contents of `<split>.beton.json`."""

    format: int
    """Version of this form."""
    split: Split
    """Which images the file holds."""
    class_names: list[str]
    """Names of the classes, by label."""
    num_samples: int
    """Images in the file."""
    samples_per_class: list[int]
    """Images of each class, by label."""
    heights: tuple[int, int]
    """Smallest and largest stored height, in pixels."""
    widths: tuple[int, int]
    """Smallest and largest stored width, in pixels."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Checksum of the file."""
    source_sha256: str
    """Checksum of the names and labels of all images of the source, in all splits."""
    skipped: list[str]
    """Unreadable images that were left out, and why."""
    settings: dict[str, str | int | float]
    """Settings that decided what is in the file."""


@dataclass(frozen=True)
class DatasetInfo:
    """The three prepared files."""

    folder: str
    """Where they lie: a whole path, or an address in S3."""
    class_names: tuple[str, ...]
    """Names of the classes, by label."""
    num_samples: dict[Split, int]
    """Images of each split."""
    samples_per_class: dict[Split, tuple[int, ...]]
    """Images of each class in each split, by label."""
    sha256: dict[Split, str]
    """Checksum of each file."""
    skipped: dict[Split, tuple[str, ...]]
    """Unreadable images that were left out of each split, and why."""


def split_path(folder: Path, split: Split) -> Path:
    """The prepared file of a split."""
    return folder / f"{split}.beton"


def metadata_path(path: Path) -> Path:
    """The sidecar of a prepared file."""
    return path.with_name(f"{path.name}.json")


def write_metadata(path: Path, sidecar: SplitMetadata) -> None:
    """Write the sidecar of a prepared file, whole or not at all."""
    with atomic_write(metadata_path(path)) as part:
        part.write_text(json.dumps(asdict(sidecar), indent=1))


def read_metadata(path: Path) -> SplitMetadata:
    """Read the sidecar of a prepared file.

    Raises:
        FileNotFoundError: the file or its sidecar is missing.
        ValueError: the sidecar is not of this form, or tells of another file.
    """
    beside = metadata_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run pipelines/prepare_data.py")
    if not beside.is_file():
        raise FileNotFoundError(
            f"{beside}: no such file, so {path.name} was not finished; "
            "run pipelines/prepare_data.py again"
        )
    sidecar = parse_metadata(beside.read_bytes(), str(beside))
    size = path.stat().st_size
    if size != sidecar.bytes:
        raise ValueError(
            f"{path} has {size} bytes, but {beside.name} says {sidecar.bytes}: "
            "copy or prepare it anew"
        )
    return sidecar


def parse_metadata(content: bytes, name: str) -> SplitMetadata:
    """Read the content of a sidecar.

    Raises:
        ValueError: it is not of this form.
    """
    try:
        sidecar = SplitMetadata(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is no sidecar: {error}; prepare its file anew") from error
    if sidecar.format != FORMAT:
        raise ValueError(
            f"{name} has format {sidecar.format}, but {FORMAT} is needed: prepare its file anew"
        )
    return sidecar


def read_remote_metadata(address: str, store: ObjectStore) -> tuple[SplitMetadata, bytes]:
    """Read the sidecar of a prepared file in S3; give its content too.

    Raises:
        FileNotFoundError: there is none, so the file was not prepared.
        ValueError: the sidecar is not of this form.
    """
    try:
        content = store.read(f"{address}.json").data
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; run pipelines/prepare_data.py") from None
    return parse_metadata(content, f"{address}.json"), content


def file_sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path) -> None:
    """Hold a prepared file against the checksum in its sidecar, which takes reading all of it.

    Raises:
        ValueError: the file is not the one that was written.
    """
    sidecar = read_metadata(path)
    found = file_sha256(path)
    if found != sidecar.sha256:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found}, but {metadata_path(path).name} says "
            f"{sidecar.sha256}; copy or prepare it anew"
        )


def is_prepared(folder: Path, split: Split) -> bool:
    """Whether a split's file was written to its end."""
    path = split_path(folder, split)
    return path.is_file() and metadata_path(path).is_file()


def check_settings(folder: str, sidecar: SplitMetadata, split: Split, wanted: dict) -> None:
    """Refuse a file of another split or of other settings.

    Raises:
        ValueError: names what differs.
    """
    if sidecar.split != split:
        raise ValueError(
            f"{folder}/{split}.beton holds the {sidecar.split} split, but lies where {split} "
            "belongs; delete it and prepare it anew"
        )
    different = [
        f"{name} {sidecar.settings.get(name)!r} (now {value!r})"
        for name, value in wanted.items()
        if sidecar.settings.get(name) != value
    ]
    if different:
        raise ValueError(
            f"{folder}/{split}.beton was prepared with {', '.join(different)}; set data.prepared_dir to "
            f"another folder, or delete {folder}/*.beton* to prepare it anew"
        )


def read_info(config: DataConfig, image_size: int) -> DatasetInfo:
    """Read what lies prepared for these settings.

    Raises:
        FileNotFoundError: a file or its sidecar is missing.
        ValueError: a file has other settings, or the three are not of one source.
    """
    folder = prepared_path(config, image_size)
    wanted = prepared_settings(config, image_size)
    sidecars = _read_all_metadata(folder)
    for split, sidecar in sidecars.items():
        check_settings(folder, sidecar, split, wanted)
    if len({sidecar.source_sha256 for sidecar in sidecars.values()}) != 1:
        raise ValueError(
            f"{folder}: its files were prepared from different images, so that one image may be in "
            "two splits; delete its *.beton* and prepare it anew"
        )
    return DatasetInfo(
        folder=folder,
        class_names=tuple(sidecars["train"].class_names),
        num_samples={split: sidecar.num_samples for split, sidecar in sidecars.items()},
        samples_per_class={
            split: tuple(sidecar.samples_per_class) for split, sidecar in sidecars.items()
        },
        sha256={split: sidecar.sha256 for split, sidecar in sidecars.items()},
        skipped={split: tuple(sidecar.skipped) for split, sidecar in sidecars.items()},
    )


def _read_all_metadata(folder: str) -> dict[Split, SplitMetadata]:
    if is_uri(folder):
        with ObjectStore(retry_timeout_seconds=START_TIMEOUT_SECONDS) as store:
            return {
                split: read_remote_metadata(f"{folder}/{split}.beton", store)[0] for split in SPLITS
            }
    return {split: read_metadata(split_path(Path(folder), split)) for split in SPLITS}
