"""Start of a run: resolve its paths and open its MLflow run."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from types import MappingProxyType

from cluster.storage.filesystem import resolve_storage
from cluster.tracking import runs
from cluster.tracking.provenance import provenance_tags
from cluster.tracking.record import TrackedRun
from pipelines.data.config import prepared_path
from pipelines.run import Run, config_text, flatten, identity


def resolve(run: Run) -> Run:
    """Return the run with absolute paths, for workers on other nodes.

    The identity of a run is taken before: a job runs in another folder each time it is submitted.
    """
    return replace(
        run,
        data=replace(run.data, prepared_dir=prepared_path(run.data, run.model.image_size)),
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
