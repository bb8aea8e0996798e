"""Evaluate a trained network: every exit, and thresholds refitted for each budget.

    python pipelines/evaluate.py models:/ranet-digits@champion --config configs/digits.yaml

The config provides the images, the budgets and the workers; the model provides the network, its
weights and its normalization. The results are logged to a separate MLflow run.

    python pipelines/evaluate.py TRAINED_MODEL --test-folder FOLDER

evaluates on FOLDER/<class>/<image> instead, in this process and with the model's own thresholds;
the classes may be a subset of the model's. The results are printed only.
"""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from cluster.cli import CommandLine, configure_logging, main_guard
from cluster.execution.connection import connected
from cluster.execution.trainer import launch
from cluster.storage.checkpoints import load_checkpoint
from cluster.storage.filesystem import resolve_storage
from cluster.tracking import client
from pipelines.data.preparation.prepare import prepare
from pipelines.data.summary import describe
from pipelines.evaluation.budgets import check_budgets, evaluate_outputs
from pipelines.evaluation.image_folder import evaluate_folder
from pipelines.evaluation.mlflow_log import log_evaluation
from pipelines.evaluation.report import curve_line, format_tables
from pipelines.model_packaging.load import MODEL_HELP, load_saved
from pipelines.run import Run
from pipelines.start import on_this_machine, resolve, track
from pipelines.workers import EvaluateTask, evaluate_worker, exit_outputs_in
from ranet import ModelMetadata, mult_adds
from ranet.evaluation.exit_outputs import SplitOutputs


def main() -> None:
    """Load the model, evaluate it, and print and log the results."""
    options = command_line().read()
    trained_model, run = options.trained_model, options.settings
    configure_logging()
    with main_guard():
        if options.test_folder:
            print(evaluate_test_folder(trained_model, run, Path(options.test_folder)))
            return
        client.check_reachable()
        run = on_this_machine(run)
        resolve_storage(run.cluster.storage_path)
        saved = load_saved(trained_model)
        run = with_model(run, saved.metadata)
        name = f"{run.name}-evaluation"
        extra = {"evaluated": trained_model}
        with track(run, name=name, extra=extra, new_attempt=True) as record:
            outputs = evaluate_weights(resolve(run), saved.weights, record.storage_name)
            evaluation = evaluate_outputs(
                mult_adds(run.model),
                outputs["val"],
                outputs["test"],
                run.evaluation.budget_fractions,
            )
            plot = log_evaluation(
                evaluation,
                record.run_id,
                folder=Path("outputs") / "evaluation" / record.storage_name,
                title=f"{trained_model} on {run.name}",
            )
        print(f"\n{format_tables(evaluation)}\n\n{curve_line(plot)}")
        print(f"MLflow run  {record.run_id} ({name}, attempt {record.attempt})")


def command_line() -> CommandLine:
    """Declare the model beside the settings of a run."""
    parser = CommandLine(
        __doc__, Run, usage="%(prog)s TRAINED_MODEL [--config FILE] [--section.field=value ...]"
    )
    parser.add_argument("trained_model", metavar="TRAINED_MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--test-folder",
        default="",
        metavar="FOLDER",
        help="folder of class folders to evaluate on with the thresholds of the network; empty: "
        "the test images of the config",
    )
    return parser


def evaluate_test_folder(trained_model: str, run: Run, folder: Path) -> str:
    """Evaluate on a folder of images with the network's thresholds.

    Returns:
        Tables of all exits and budgets.
    """
    saved = load_saved(trained_model)
    evaluation = evaluate_folder(
        saved, folder, run.evaluation.budget_fractions, run.data.max_pixels
    )
    return (
        f"{trained_model} on the images of {folder}, thresholds of the network\n\n"
        f"{format_tables(evaluation)}"
    )


def with_model(run: Run, metadata: ModelMetadata) -> Run:
    """Prepare the images and insert the model's network and normalization.

    Raises:
        ValueError: The images differ from the images that the model was trained with.
    """
    model = metadata.model
    check_budgets(mult_adds(model), run.evaluation.budget_fractions)
    info = prepare(run.data, model.image_size)
    print(describe(info))
    if tuple(info.class_names) != metadata.class_names:
        raise ValueError(
            f"data.source {run.data.source} has the classes {list(info.class_names)}, but the "
            f"model was trained on classes {list(metadata.class_names)}; evaluate it on images of "
            "its classes"
        )
    trained_on = metadata.data.sha256["val"]
    if info.sha256["val"] != trained_on:
        raise ValueError(
            f"the validation images of {info.folder} (SHA-256 {info.sha256['val'][:12]}) are not "
            f"the images that were held out when the model was trained "
            f"({trained_on[:12]}): the model may have been trained on them, "
            "which would bias its thresholds; evaluate it on the images prepared for its training"
        )
    data = replace(
        run.data,
        mean=metadata.preprocessing.mean,
        std=metadata.preprocessing.std,
    )
    return replace(run, model=model, data=data)


def evaluate_weights(
    run: Run, weights: dict[str, Tensor], storage_name: str
) -> dict[str, SplitOutputs]:
    """Collect exit outputs of `val` and `test` on the workers."""
    with connected(run.cluster):
        checkpoint = launch(
            evaluate_worker,
            EvaluateTask(run, {name: value.cpu() for name, value in weights.items()}),
            cluster=run.cluster,
            name=storage_name,
        )
    return exit_outputs_in(load_checkpoint(checkpoint))


if __name__ == "__main__":
    main()
