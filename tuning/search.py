"""Random search by Ray Tune over whole runs."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.tune.search import Searcher

from cluster.config import ClusterConfig
from cluster.launch import RunError, wants_gpu
from cluster.tracking import TrackingError
from tuning.space import Dimension, as_arguments

logger = logging.getLogger(__name__)

_MOST_DRAWS = 300
_TRIAL_BYTES = 500e6


class RandomSearch(Searcher):
    """Draws samples at random, again until one can be trained and is new."""

    def __init__(
        self,
        space: Mapping[str, Dimension],
        *,
        num_trials: int,
        seed: int,
        check: Callable[[list[str]], object],
    ) -> None:
        """Draw all samples, so that a space that does not hold them is refused at once.

        Args:
            space: settings by dotted name.
            num_trials: samples to draw.
            seed: seed of the draws.
            check: raises ValueError for command-line arguments that cannot be trained.
        """
        super().__init__()
        self._samples = list(_draw(space, num_trials, np.random.default_rng(seed), check))
        self._next = 0

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """Return the next sample."""
        self._next += 1
        return self._samples[self._next - 1]

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Learn nothing: the samples do not depend on results."""

    def save(self, checkpoint_path: str) -> None:
        """Note how many samples were given out; a sweep that goes on draws the same ones."""
        Path(checkpoint_path).write_text(json.dumps(self._next))

    def restore(self, checkpoint_path: str) -> None:
        """Go on where `save` was called."""
        self._next = json.loads(Path(checkpoint_path).read_text())


class LogTrials(tune.Callback):
    """Says in the log what each trial tries, and how it ended."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Name the settings of the trial."""
        logger.info("trial %s tries %s", trial.trial_id, " ".join(as_arguments(trial.config)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Name its score."""
        score = trial.last_result["val_top1"]
        logger.info("trial %s: validation top-1 %.2f %%", trial.trial_id, score)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Name what stopped it."""
        logger.error("trial %s failed: %s", trial.trial_id, cause_of(trial.get_pickled_error()))


def search(
    trial: Callable[[dict[str, Any]], None],
    searcher: RandomSearch,
    *,
    num_trials: int,
    cluster: ClusterConfig,
    name: str,
    storage: str,
    resume: bool,
) -> tune.ResultGrid:
    """Run the trials, as many at a time as the cluster has room for.

    Args:
        trial: what Tune calls with a sample.
        searcher: gives the samples.
        num_trials: trials in all.
        cluster: what each trial asks of Ray.
        name: folder of the sweep below `storage`.
        storage: absolute path or address.
        resume: go on with the trials that an earlier start left unfinished.
    """
    # Trials read relative paths, and Ctrl-C must end the sweep, not be taken for its result.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the other output ignores verbose=0
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # LogTrials names what went wrong
    # A trial only waits for its workers: any share of a CPU would be missing in a last worker.
    trainable = tune.with_resources(trial, {"memory": _TRIAL_BYTES})
    path = f"{storage}/{name}"
    if resume and tune.Tuner.can_restore(path):
        tuner = tune.Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=num_trials,
                max_concurrent_trials=room_for(cluster),
                trial_dirname_creator=_folder,
            ),
            run_config=tune.RunConfig(
                name=name, storage_path=storage, callbacks=[LogTrials()], verbose=0
            ),
        )
    return tuner.fit()


def room_for(cluster: ClusterConfig) -> int:
    """Return how many whole worker groups Ray has room for now, at least one."""
    has = ray.cluster_resources()
    groups = [has.get("CPU", 0) // (cluster.max_workers * cluster.cpus_per_worker)]
    if wants_gpu(cluster):
        groups.append(has.get("GPU", 0) // cluster.max_workers)
    return max(1, int(min(groups)))


def cause_of(error: Exception) -> Exception:
    """Return what a trial was stopped by; of an error of our own, with all that Ray says of it."""
    expected = (RunError, TrackingError, ValueError, OSError)
    if isinstance(error, RayTaskError) and isinstance(error.cause, expected):
        return error.cause
    return error


def _folder(trial: Any) -> str:
    return trial.trial_id


def _draw(
    space: Mapping[str, Dimension],
    count: int,
    random: np.random.Generator,
    check: Callable[[list[str]], object],
) -> Iterator[dict[str, Any]]:
    """Give `count` different samples that `check` takes."""
    drawn: list[dict[str, Any]] = []
    reason = ""
    for number in range(count):
        for _ in range(_MOST_DRAWS):
            sample = {name: dimension.draw(random) for name, dimension in space.items()}
            if sample in drawn:
                continue
            drawn.append(sample)
            try:
                check(as_arguments(sample))
            except ValueError as error:
                reason = f"; the last one refused: {error}"
            else:
                yield sample
                break
        else:
            raise ValueError(
                f"space gave {number} different samples that can be trained, and in "
                f"{_MOST_DRAWS} more draws no other: widen it or lower num_trials{reason}"
            )
