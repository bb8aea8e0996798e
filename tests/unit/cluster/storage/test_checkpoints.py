"""Checkpoints that an unfinished run can resume from."""

import shutil

import pytest

from cluster.storage.checkpoints import RAY_LIST, has_checkpoints
from cluster.tracking import runs
from pipelines.run import Run
from pipelines.start import track

FIRST = "checkpoint_2026-11-28_10-00-00.000001"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((RAY_LIST, f"{FIRST}/snapshot.pt"), True),
        ((RAY_LIST,), False),
        ((f"{FIRST}/snapshot.pt",), False),
        ((), False),
    ],
)
def test_checkpoints_need_their_folder_and_the_list_of_ray(files, expected, tmp_path):
    for name in files:
        path = tmp_path / "digits-1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert has_checkpoints(str(tmp_path), "digits-1") == expected
    assert not has_checkpoints(str(tmp_path / "missing"), "digits-1")


@pytest.mark.parametrize("is_deleted", [False, True])
@pytest.mark.parametrize("has_results", [False, True])
def test_unfinished_run_without_its_checkpoints_starts_a_new_attempt(
    is_deleted, has_results, empty_database, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(runs, "SETTLE_SECONDS", 0.0)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    run = Run(name="digits")
    with pytest.raises(KeyboardInterrupt), track(run) as first:  # noqa: PT012
        if has_results:
            first.log_history([{"epoch": 1.0}])
        raise KeyboardInterrupt
    folder = tmp_path / "outputs" / "runs" / first.storage_name
    (folder / FIRST).mkdir(parents=True)
    (folder / RAY_LIST).touch()
    if is_deleted:
        shutil.rmtree(folder)
    with caplog.at_level("WARNING"), track(run) as second:
        pass
    is_lost = is_deleted and has_results
    assert (second.attempt, second.resumed) == ((2, False) if is_lost else (1, True))
    assert ("are gone: a new attempt starts from scratch" in caplog.text) == is_lost
