"""Metadata file of a prepared split: classes, counts, checksums, source, settings."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster.storage.files import atomic_write
from cluster.storage.s3 import START_TIMEOUT_SECONDS, ObjectStore, is_uri
from pipelines.data.config import (
    SPLITS,
    Channels,
    DataConfig,
    Split,
    prepared_path,
    prepared_settings,
)

FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """Source of prepared files: numbers for the summary, hashes that show changes."""

    folder: str
    """`data.source_dir`; empty: none."""
    sha256: str
    """SHA-256 of class names, and of names, labels and file sizes of all images."""
    stamps_sha256: str
    """SHA-256 of the times of change, or ETags, of all images."""
    num_train: int
    """Number of training images, before validation images are held out."""
    num_test: int
    """Number of test images."""
    files_seen: int
    """Number of files, including those that are no images."""
    files_skipped: dict[str, int]
    """Number of skipped files by reason, unreadable images not included."""


@dataclass(frozen=True, kw_only=True)
class SplitMetadata:
    """Content of `<split>.beton.json`."""

    format: int
    """Version of this format."""
    split: Split
    """Split of the images in the file."""
    class_names: list[str]
    """Class names in label order."""
    num_samples: int
    """Number of images in the file."""
    samples_per_class: list[int]
    """Number of images of each class, in label order."""
    heights: tuple[int, int]
    """Min and max stored height, in pixels."""
    widths: tuple[int, int]
    """Min and max stored width, in pixels."""
    bytes: int
    """Size of the file, in bytes."""
    sha256: str
    """SHA-256 of the file."""
    content_sha256: str
    """SHA-256 of the hashes of the images' files, in order."""
    mean: Channels
    """Mean of red, green and blue over the images, from 0 to 1."""
    std: Channels
    """Standard deviation of red, green and blue over the images."""
    source: SourceRecord
    """Source of the images of all splits."""
    skipped: list[str]
    """Error message of each unreadable image that was skipped."""
    duplicates: dict[str, int]
    """Number of equal files in two splits, such as "train and test"."""
    settings: dict[str, str | int | float]
    """Settings that determined the content of the file."""


@dataclass(frozen=True)
class DatasetInfo:
    """Summary of the three prepared files of a data set."""

    folder: str
    """Absolute path or S3 URI of the files' folder."""
    class_names: tuple[str, ...]
    """Class names in label order."""
    num_samples: dict[Split, int]
    """Number of images of each split."""
    samples_per_class: dict[Split, tuple[int, ...]]
    """Number of images of each class in each split, in label order."""
    sha256: dict[Split, str]
    """SHA-256 of each file."""
    skipped: dict[Split, tuple[str, ...]]
    """Error messages of the unreadable images that were skipped in each split."""
    heights: dict[Split, tuple[int, int]]
    """Min and max stored height of each split, in pixels."""
    widths: dict[Split, tuple[int, int]]
    """Min and max stored width of each split, in pixels."""
    content_sha256: dict[Split, str]
    """SHA-256 of the hashes of the images' files of each split."""
    duplicates: dict[str, int]
    """Number of equal files in two splits, by the names of the splits."""
    mean: Channels
    """Mean of red, green and blue over the training images, from 0 to 1."""
    std: Channels
    """Standard deviation of red, green and blue over the training images."""
    source: SourceRecord
    """Source of the images."""


def split_path(folder: Path, split: Split) -> Path:
    """Return the path of a split's prepared file."""
    return folder / f"{split}.beton"


def metadata_path(path: Path) -> Path:
    """Return the path of a prepared file's metadata file."""
    return path.with_name(f"{path.name}.json")


def rewrite_hint(path: Path) -> str:
    """Return the remedies for a damaged prepared file."""
    return (
        f"copy it again, or delete it and {path.name}.json and run pipelines/prepare_data.py, "
        "which needs the source"
    )


def write_metadata(path: Path, metadata: SplitMetadata) -> None:
    """Write the metadata file of a prepared file atomically."""
    with atomic_write(metadata_path(path)) as part:
        part.write_text(json.dumps(asdict(metadata), indent=1))


def read_metadata(path: Path) -> SplitMetadata:
    """Read the metadata file of a prepared file.

    Raises:
        FileNotFoundError: the file or its metadata file is missing.
        ValueError: the metadata file is invalid, or belongs to a file of another size.
    """
    source = metadata_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run pipelines/prepare_data.py")
    if not source.is_file():
        raise FileNotFoundError(
            f"{source}: no such file, so {path.name} is unfinished; "
            "run pipelines/prepare_data.py again"
        )
    metadata = parse_metadata(source.read_bytes(), str(source))
    size = path.stat().st_size
    if size != metadata.bytes:
        raise ValueError(
            f"{path} has {size} bytes, but {source.name} lists {metadata.bytes}: "
            f"{rewrite_hint(path)}"
        )
    return metadata


def parse_metadata(content: bytes, name: str) -> SplitMetadata:
    """Parse the content of a metadata file.

    Raises:
        ValueError: the content is invalid.
    """
    file = name.removesuffix(".json")
    advice = f"delete {name} and {file}, and run pipelines/prepare_data.py"
    try:
        fields = json.loads(content)
        if fields["format"] != FORMAT:
            raise ValueError(
                f"{name} has format {fields['format']}, but {FORMAT} is needed; {advice}"
            )
        fields["source"] = SourceRecord(**fields["source"])
        return SplitMetadata(**fields)
    except (TypeError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{name} is not a metadata file ({error!r}); {advice}") from error


def read_remote_metadata(uri: str, store: ObjectStore) -> tuple[SplitMetadata, bytes]:
    """Read a metadata file in S3; also return its raw content.

    Raises:
        FileNotFoundError: the metadata file is missing, so the split is not prepared.
        ValueError: the metadata file is invalid.
    """
    try:
        content = store.read(f"{uri}.json").data
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; run pipelines/prepare_data.py") from None
    return parse_metadata(content, f"{uri}.json"), content


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path) -> None:
    """Compare a prepared file with the checksum in its metadata file.

    Raises:
        ValueError: the file differs from the one that was written.
    """
    metadata = read_metadata(path)
    found = file_sha256(path)
    if found != metadata.sha256:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found}, but {metadata_path(path).name} lists "
            f"{metadata.sha256}; {rewrite_hint(path)}"
        )


def is_prepared(folder: Path, split: Split) -> bool:
    """Return whether a split's file was written completely."""
    path = split_path(folder, split)
    return path.is_file() and metadata_path(path).is_file()


def check_settings(folder: str, metadata: SplitMetadata, split: Split, wanted: dict) -> None:
    """Check that a file matches a split and the current settings.

    Raises:
        ValueError: the split or a setting differs.
    """
    if metadata.split != split:
        raise ValueError(
            f"{folder}/{split}.beton contains the {metadata.split} split instead of {split}; "
            f"delete {folder}/*.beton* and run pipelines/prepare_data.py"
        )
    different = [
        f"{name} {metadata.settings.get(name)!r} (now {value!r})"
        for name, value in wanted.items()
        if metadata.settings.get(name) != value
    ]
    if different:
        raise ValueError(
            f"{folder}/{split}.beton was prepared with {', '.join(different)}; use the old "
            "setting, set data.prepared_dir to another folder, or delete "
            f"{folder}/*.beton* to prepare it again"
        )


def read_info(config: DataConfig, image_size: int) -> DatasetInfo:
    """Read the metadata of the prepared files of these settings.

    Raises:
        FileNotFoundError: a file or its metadata file is missing.
        ValueError: a file has other settings, or the files have different sources.
    """
    folder = prepared_path(config, image_size)
    wanted = prepared_settings(config, image_size)
    all_metadata = _read_all_metadata(folder)
    for split, metadata in all_metadata.items():
        check_settings(folder, metadata, split, wanted)
    if len({metadata.source.sha256 for metadata in all_metadata.values()}) != 1:
        raise ValueError(
            f"{folder}: the files were prepared from different images, so that one image may be in "
            f"two splits; delete {folder}/*.beton* and run pipelines/prepare_data.py"
        )
    train = all_metadata["train"]
    return DatasetInfo(
        folder=folder,
        class_names=tuple(train.class_names),
        num_samples={split: metadata.num_samples for split, metadata in all_metadata.items()},
        samples_per_class={
            split: tuple(metadata.samples_per_class) for split, metadata in all_metadata.items()
        },
        sha256={split: metadata.sha256 for split, metadata in all_metadata.items()},
        skipped={split: tuple(metadata.skipped) for split, metadata in all_metadata.items()},
        heights={split: metadata.heights for split, metadata in all_metadata.items()},
        widths={split: metadata.widths for split, metadata in all_metadata.items()},
        content_sha256={split: metadata.content_sha256 for split, metadata in all_metadata.items()},
        duplicates={
            pair: count
            for metadata in all_metadata.values()
            for pair, count in metadata.duplicates.items()
        },
        mean=train.mean,
        std=train.std,
        source=train.source,
    )


def with_normalization(config: DataConfig, info: DatasetInfo) -> DataConfig:
    """Insert the training images' mean and std where unset."""
    return replace(config, mean=config.mean or info.mean, std=config.std or info.std)


def _read_all_metadata(folder: str) -> dict[Split, SplitMetadata]:
    if is_uri(folder):
        with ObjectStore(retry_timeout_seconds=START_TIMEOUT_SECONDS) as store:
            return {
                split: read_remote_metadata(f"{folder}/{split}.beton", store)[0] for split in SPLITS
            }
    return {split: read_metadata(split_path(Path(folder), split)) for split in SPLITS}
