"""Trials of a sweep in MLflow."""

import time
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from cluster.tracking.runs import children
from tests.support.sweeps import accept, end_of, make_config
from tuning.trial_store import TrialStore, read_trials


def test_time_of_a_sweep_is_the_sum_over_its_invocations(parent):
    for resumed in (False, True):
        with TrialStore(replace(parent, resumed=resumed), make_config):
            time.sleep(0.3)
    began = time.monotonic()
    store = TrialStore(replace(parent, resumed=True), make_config)
    assert store.seconds - (time.monotonic() - began) > 0.55  # rounded to a tenth of a second


def test_trial_opened_twice_after_an_mlflow_failure_is_resumed_once(parent, monkeypatch):
    uri, candidate = parent.uri, accept({"x": 1})

    def away(*_: object, **__: object) -> None:
        raise OSError("MLflow is away")

    with TrialStore(parent, make_config) as store:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "log_batch", away)
            with pytest.raises(OSError, match="away"):
                store.open(1, candidate)
        record, _ = store.open(1, candidate)
    assert len(children(uri, parent.run_id)) == 2
    again = TrialStore(replace(parent, resumed=True), make_config)
    assert [each.run.info.run_id for each in again.unfinished] == [record.run_id]
    with again:
        again.open(1, candidate, again.unfinished[0])
        again.close(1, end_of((50.0,)))
    ended, left = read_trials(uri, parent.run_id)
    assert [each.run_id for each in ended] == [record.run_id]
    assert left == []
