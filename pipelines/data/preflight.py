"""Pre-flight checks of a run's images: source, classes, number and size."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from cluster.errors import EXPECTED_ERRORS
from cluster.findings import Finding, check, format_bytes, missing
from cluster.storage.s3 import check_writable, is_uri
from pipelines.data.config import LOCAL_SOURCES, DataConfig, Split
from pipelines.data.fit import (
    facts_of_expected,
    facts_of_files,
    facts_of_source,
    find_problems,
    inspect_images,
)
from pipelines.data.format.beton import LISTED_ERRORS
from pipelines.data.format.metadata import read_info
from pipelines.data.loading.staging import remote_files
from pipelines.data.preparation.comparison import check_source_unchanged, source_record
from pipelines.data.sources.base import split_source
from pipelines.data.sources.builtin import DOWNLOADS
from pipelines.data.sources.factory import SOURCES, open_source
from pipelines.data.summary import describe_files
from ranet.config import ModelConfig


@dataclass(frozen=True)
class ImagesReport:
    """Findings about the images of a run."""

    findings: list[Finding]
    num_train: int = 0
    """Number of training images; 0: unknown."""
    cache_bytes: int = 0
    """Bytes of images that each node copies to its disk."""


def check_images(
    config: DataConfig, model: ModelConfig, batch_size: int, *, is_here: bool
) -> ImagesReport:
    """Check the prepared images, or their source.

    Args:
        config: Images and their preparation.
        model: Network that is trained on the images.
        batch_size: Images of all workers per step.
        is_here: The run uses the current cluster or this machine, not rented machines.
    """
    try:
        info = read_info(config, model.image_size)
    except FileNotFoundError as error:
        return _check_unprepared(config, model, batch_size, str(error), is_here=is_here)
    except EXPECTED_ERRORS as error:
        return _expect(config, model, batch_size, missing([str(error)]), "cannot be read")
    findings = missing(find_problems(facts_of_files(info), config, model, batch_size))
    findings += check(partial(check_source_unchanged, config, model.image_size, info))
    cache_bytes = 0
    if is_uri(info.folder):
        cache_bytes = sum(file.bytes for file in remote_files(info.folder))
    findings += [
        Finding("images", _describe_counts(info.num_samples)),
        _staging(config, format_bytes(cache_bytes)),
    ]
    return ImagesReport(findings, info.num_samples["train"], cache_bytes)


def _check_unprepared(
    config: DataConfig, model: ModelConfig, batch_size: int, error: str, *, is_here: bool
) -> ImagesReport:
    """Check the source of images that the run will prepare first."""
    findings = []
    text = "not prepared yet: the run prepares them first"
    is_local = config.source in LOCAL_SOURCES
    if is_uri(config.prepared_dir):
        findings += check(
            partial(check_writable, "data.prepared_dir", config.prepared_dir, needs_lock=True)
        )
    if is_local and not config.source_dir:
        findings += missing([error])
    elif is_local and not is_here and not is_uri(config.source_dir):
        text += f", from {config.source_dir} of the rented machines, which was not checked"
    elif is_local:
        return _check_source(config, model, batch_size, text, findings)
    if SOURCES[config.source].is_downloaded:
        text += f", downloading them if missing in {config.source_dir or DOWNLOADS}"
    return _expect(config, model, batch_size, findings, text)


def _check_source(
    config: DataConfig, model: ModelConfig, batch_size: int, text: str, findings: list[Finding]
) -> ImagesReport:
    """Find the images of a source, and decode some of them."""
    try:
        source = open_source(config, model.image_size)
        images = split_source(source, config)
    except EXPECTED_ERRORS as error:
        return _expect(config, model, batch_size, [*findings, *missing([str(error)])], text)
    facts = facts_of_source(source, images, config)
    unreadable = [line for lines in source.unreadable.values() for line in lines]
    for part in images.values():
        unreadable += inspect_images(part, config).unreadable
    counts: dict[Split, int] = {split: len(part.labels) for split, part in images.items()}
    findings += missing(find_problems(facts, config, model, batch_size))
    findings += missing(unreadable[:LISTED_ERRORS])
    if len(unreadable) > LISTED_ERRORS:
        findings += missing([f"{len(unreadable) - LISTED_ERRORS} more images are unreadable"])
    findings += [
        Finding("files", describe_files(source_record(source, config))),
        Finding("images", f"{text}; {_describe_counts(counts)} expected"),
        _staging(config, "an unknown number of bytes"),
    ]
    return ImagesReport(findings, counts["train"])


def _expect(
    config: DataConfig, model: ModelConfig, batch_size: int, findings: list[Finding], text: str
) -> ImagesReport:
    """Report the published number of images, if there is one."""
    spec = SOURCES[config.source]
    expected = spec.expected_size(config, model.num_classes, model.image_size)
    if expected is None:
        images = Finding("images", f"{text}; their number is unknown")
        return ImagesReport([*findings, images])
    counts, stored_bytes = expected.num_samples, expected.stored_bytes
    size = f"about {format_bytes(stored_bytes)}" if stored_bytes else "an unknown number of bytes"
    findings = [
        *findings,
        *missing(find_problems(facts_of_expected(expected), config, model, batch_size)),
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
