"""Start of a run: resolve its paths and open its MLflow run."""

import json
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from cluster.storage.filesystem import resolve_storage
from cluster.tracking import runs
from cluster.tracking.provenance import provenance_tags
from cluster.tracking.record import TrackedRun
from pipelines.data.config import prepared_path
from pipelines.data.format.metadata import DatasetInfo, read_info, with_normalization
from pipelines.data.summary import describe, summary_of
from pipelines.run import Run, config_text, flatten, identity


def resolve(run: Run) -> Run:
    """Return the run as workers on other nodes need it.

    Paths are absolute, and mean and std of the images are inserted where unset.
    The identity of a run is taken before: a job runs in another folder each time it is submitted.
    """
    data = replace(run.data, prepared_dir=prepared_path(run.data, run.model.image_size))
    if data.mean is None or data.std is None:
        data = with_normalization(data, read_info(data, run.model.image_size))
    return replace(
        run,
        data=data,
        cluster=replace(run.cluster, storage_path=resolve_storage(run.cluster.storage_path)),
    )


def track(
    run: Run,
    *,
    name: str = "",
    extra: Mapping[str, str] = MappingProxyType({}),
    new_attempt: bool = False,
) -> AbstractContextManager[TrackedRun]:
    """Open an MLflow run: resume the last attempt or start one.

    Args:
        run: The run, before `resolve`.
        name: Name of the MLflow run; empty: that of the run.
        extra: Settings besides those of the run that must not change when it resumes.
        new_attempt: Abandon an unfinished attempt and start a new one.
    """
    return runs.open_run(
        name or run.name,
        settings={**extra, **identity(run)},
        parameters=flatten(run),
        tags=provenance_tags(),
        config_text=config_text(run),
        new_attempt=new_attempt,
    )


def log_images(record: TrackedRun, info: DatasetInfo) -> None:
    """Log the summary of the images as text and as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "summary.txt").write_text(describe(info) + "\n", encoding="utf-8")
        Path(folder, "summary.json").write_text(json.dumps(summary_of(info), indent=1))
        record.log_folder(folder, "images")
