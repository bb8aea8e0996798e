"""Start of a run: resolve its folders and open its MLflow run."""

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from cluster.environment import check_ray_settings
from cluster.errors import RunError
from cluster.preflight import check_caches, describe_reduction, fit_to_machine
from cluster.storage.checkpoints import has_checkpoints
from cluster.storage.filesystem import resolve_storage
from cluster.storage.s3 import is_uri
from cluster.tracking import runs
from cluster.tracking.provenance import provenance_tags
from cluster.tracking.record import TrackedRun
from pipelines.data.config import prepared_path
from pipelines.data.format.metadata import DatasetInfo
from pipelines.data.summary import describe, summary_of
from pipelines.run import Run, config_text, flatten, identity

logger = logging.getLogger(__name__)


def resolve(run: Run) -> Run:
    """Return the run as workers on other nodes need it.

    Folders are absolute and checked to be writable. The identity of a run is taken before.
    """
    return replace(
        run,
        data=replace(run.data, prepared_dir=prepared_path(run.data, run.model.image_size)),
        cluster=replace(run.cluster, storage_path=resolve_storage(run.cluster.storage_path)),
    )


def check_machine(run: Run) -> None:
    """Check environment variables and folders of this machine.

    Raises:
        RunError: Ray could not connect or start, or a cache cannot be written.
    """
    check_ray_settings()
    if not os.environ.get("RAY_ADDRESS"):
        for finding in check_caches(run.cluster, stages_images=is_uri(run.data.prepared_dir)):
            raise RunError(finding.text)


def on_this_machine(run: Run) -> Run:
    """Return the run with the workers that fit this machine.

    Raises:
        RunError: the machine has too few GPUs, or its environment does not suit Ray or the caches.
    """
    check_machine(run)
    cluster = fit_to_machine(run.cluster)
    if text := describe_reduction(run.cluster, cluster):
        logger.warning("%s", text)
    return replace(run, cluster=cluster)


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
    new_attempt = new_attempt or _has_lost_checkpoints(run, name or run.name)
    return runs.open_run(
        name or run.name,
        settings={**extra, **identity(run)},
        parameters=flatten(run),
        tags=provenance_tags(),
        config_text=config_text(run),
        new_attempt=new_attempt,
    )


def _has_lost_checkpoints(run: Run, name: str) -> bool:
    """Return whether an unfinished attempt has lost its checkpoints."""
    storage = runs.storage_to_resume(name)
    if storage is None or has_checkpoints(run.cluster.storage_path, storage):
        return False
    logger.warning(
        "%s is unfinished, but its checkpoints %s/%s are gone: a new attempt starts from scratch",
        name,
        run.cluster.storage_path,
        storage,
    )
    return True


def log_images(record: TrackedRun, info: DatasetInfo) -> None:
    """Log the summary of the images as text and as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "summary.txt").write_text(describe(info) + "\n", encoding="utf-8")
        Path(folder, "summary.json").write_text(json.dumps(summary_of(info), indent=1))
        record.log_folder(folder, "images")
