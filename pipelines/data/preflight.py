"""Pre-flight checks of a run's images: classes, sources, sizes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from cluster.errors import EXPECTED_ERRORS
from cluster.findings import Finding, check, format_bytes, missing
from cluster.storage.s3 import check_writable, is_uri
from pipelines.data.config import LOCAL_SOURCES, DataConfig, Split
from pipelines.data.format.metadata import DatasetInfo, read_info
from pipelines.data.loading.staging import remote_files
from pipelines.data.sources.builtin import DOWNLOADS
from pipelines.data.sources.factory import SOURCES, check_source
from ranet.config import ModelConfig


@dataclass(frozen=True)
class ImagesReport:
    """Findings about the images of a run."""

    findings: list[Finding]
    num_train: int = 0
    """Number of training images; 0: unknown."""
    cache_bytes: int = 0
    """Bytes of images that each node copies to its disk."""


def check_images(config: DataConfig, model: ModelConfig, *, is_here: bool) -> ImagesReport:
    """Check the prepared images, or their source.

    Args:
        config: Images and their preparation.
        model: Network that is trained on the images.
        is_here: The run uses the current cluster or this machine, not rented machines.
    """
    try:
        info = read_info(config, model.image_size)
    except FileNotFoundError as error:
        return _check_unprepared(config, model, str(error), is_here=is_here)
    except EXPECTED_ERRORS as error:
        return _expect(config, model, missing([str(error)]), "cannot be read")
    findings = check(partial(check_classes, info, config.source, model.num_classes))
    cache_bytes = 0
    if is_uri(info.folder):
        cache_bytes = sum(file.bytes for file in remote_files(info.folder))
    findings += [
        Finding("images", _describe_counts(info.num_samples)),
        _staging(config, format_bytes(cache_bytes)),
    ]
    return ImagesReport(findings, info.num_samples["train"], cache_bytes)


def check_classes(info: DatasetInfo, source: str, num_classes: int) -> None:
    """Check that the network has as many classes as the images.

    Raises:
        ValueError: The numbers of classes differ.
    """
    if len(info.class_names) != num_classes:
        raise ValueError(
            f"model.num_classes must be {len(info.class_names)}, the number of classes of "
            "data.source "
            f"{source}, got {num_classes}"
        )


def _check_unprepared(
    config: DataConfig, model: ModelConfig, error: str, *, is_here: bool
) -> ImagesReport:
    """Check the source of images that the run will prepare first."""
    findings = []
    text = "not prepared yet: the run prepares them first"
    is_local = config.source in LOCAL_SOURCES
    if is_local and not config.source_dir:
        findings += missing([error])
    elif is_local and not is_here and not is_uri(config.source_dir):
        text += f", from {config.source_dir} of the rented machines, which was not checked"
    else:
        findings += check(partial(check_source, config))
    if SOURCES[config.source].is_downloaded:
        text += f", downloading them if missing in {config.source_dir or DOWNLOADS}"
    if is_uri(config.prepared_dir):
        findings += check(
            partial(check_writable, "data.prepared_dir", config.prepared_dir, needs_lock=True)
        )
    return _expect(config, model, findings, text)


def _expect(
    config: DataConfig, model: ModelConfig, findings: list[Finding], text: str
) -> ImagesReport:
    spec = SOURCES[config.source]
    expected = spec.expected_size(config, model.num_classes, model.image_size)
    if expected is None:
        images = Finding("images", f"{text}; their number is unknown")
        return ImagesReport([*findings, images])
    counts, stored_bytes = expected.num_samples, expected.stored_bytes
    size = f"about {format_bytes(stored_bytes)}" if stored_bytes else "an unknown number of bytes"
    findings = [
        *findings,
        Finding("images", f"{text}; {_describe_counts(counts)} expected"),
        _staging(config, size),
    ]
    cache_bytes = stored_bytes if is_uri(config.prepared_dir) else 0
    return ImagesReport(findings, counts["train"], cache_bytes)


def _staging(config: DataConfig, size: str) -> Finding:
    is_remote = is_uri(config.prepared_dir)
    return Finding(
        "to stage", f"{size} from S3 to each node" if is_remote else "none: read in place"
    )


def _describe_counts(counts: Mapping[Split, int]) -> str:
    return ", ".join(f"{counts[split]:,} {split}" for split in counts)
