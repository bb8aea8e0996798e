"""Evaluate a registered model again: every exit, and budgets fitted anew on validation images.

    python pipelines/evaluate.py models:/ranet-digits@champion --config configs/digits.yaml

The images, the budgets and the workers are those of the config; the network, its weights and its
normalisation are the model's. The numbers go to an MLflow run of their own.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cluster.execution.connection import connected
from cluster.execution.reporter import load_checkpoint
from cluster.execution.trainer import launch, resolve_storage
from cluster.tracking import registry
from cluster.tracking import runs as tracking
from pipelines.data import prepare
from pipelines.evaluation.report import (
    check_budgets,
    curve_line,
    evaluate_outputs,
    format_tables,
    log_evaluation,
)
from pipelines.run import (
    Run,
    config_text,
    configure_logging,
    flatten,
    identity,
    main_guard,
    read_run,
)
from pipelines.scoring import evaluate_worker
from pipelines.workers import exit_outputs_in
from ranet import ModelConfig, mult_adds
from ranet.evaluation.exit_outputs import SplitOutputs


def main() -> None:
    """Load the model, score it, and print, draw and log what it is worth."""
    model_uri, run = read_arguments(sys.argv[1:])
    configure_logging()
    with main_guard():
        tracking.check_reachable()
        resolve_storage(run.cluster.storage_path)
        classifier = registry.load(model_uri).unwrap_python_model()
        run = with_model(run, classifier)
        name = f"{run.name}-evaluation"
        with tracking.start(
            name,
            settings={"evaluated": model_uri, **identity(run)},
            parameters=flatten(run),
            tags=tracking.provenance(),
            config_text=config_text(run),
            fresh=True,
        ) as record:
            scores = score(run, classifier.weights, record.storage_name)
            evaluation = evaluate_outputs(
                mult_adds(run.model), scores["val"], scores["test"], run.evaluation.budget_fractions
            )
            plot = log_evaluation(
                evaluation,
                record.run_id,
                folder=Path("outputs") / "evaluation" / record.storage_name,
                title=f"{model_uri} on {run.name}",
            )
        print(f"\n{format_tables(evaluation)}\n\n{curve_line(plot)}")
        print(f"MLflow run  {record.run_id} ({name}, attempt {record.attempt})")


def read_arguments(argv: Sequence[str]) -> tuple[str, Run]:
    """Read the model's address and, from the rest, the run."""
    if not argv or argv[0].startswith("-"):
        sys.stderr.write("usage: evaluate.py MODEL_URI --config FILE [--section.field=value ...]\n")
        raise SystemExit(2)
    return argv[0], read_run(argv[1:])


def with_model(run: Run, classifier: Any) -> Run:
    """Prepare the images of a run, and give it the network and normalisation of a loaded model."""
    settings = classifier.settings
    model = ModelConfig(**settings["model"])
    check_budgets(mult_adds(model), run.evaluation.budget_fractions)
    info = prepare(run.data, model.image_size)
    if list(info.class_names) != settings["class_names"]:
        raise ValueError(
            f"data.source {run.data.source} has the classes {list(info.class_names)}, but the "
            f"model tells {settings['class_names']} apart; evaluate it on images of its classes"
        )
    if info.sha256["val"] != settings["validation_sha256"]:
        raise ValueError(
            f"the validation images of {info.folder} (SHA-256 {info.sha256['val'][:12]}) are not "
            f"those that were held out when the model was trained "
            f"({settings['validation_sha256'][:12]}): it may have been fitted on them, and so "
            "would its thresholds; evaluate it on the images prepared for its training"
        )
    data = replace(
        run.data,
        folder=info.folder,
        decode_threads=run.data.decode_threads or run.cluster.cpus_per_worker,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    return replace(run, model=model, data=data)


def score(run: Run, weights: dict[str, Tensor], storage_name: str) -> dict[str, SplitOutputs]:
    """Score weights on the workers of a run; gives the answers of `val` and `test`."""
    with connected(run.cluster):
        checkpoint = launch(
            evaluate_worker,
            {"run": run, "weights": {name: value.cpu() for name, value in weights.items()}},
            name=storage_name,
            storage=run.cluster.storage_path,
            cluster=run.cluster,
        )
    return exit_outputs_in(load_checkpoint(checkpoint))


if __name__ == "__main__":
    main()
