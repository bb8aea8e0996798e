"""Export a trained network as graphs for CPU engines.

The folder contains one graph per stage, a manifest, and cascade.py, which classifies images with
ONNX Runtime or OpenVINO and needs neither PyTorch nor this project.

python pipelines/export.py models:/ranet-digits@champion --format onnx --output DIR
"""

import sys
from pathlib import Path
from typing import get_args

from cluster.cli import CommandLine, configure_logging, main_guard
from cluster.tracking import registry
from pipelines.model_export.folder import (
    RUNNER,
    ExportOptions,
    Format,
    Precision,
    check_packages,
    write_export,
)
from pipelines.model_packaging.load import MODEL_HELP, load_saved

ARTIFACT_FOLDER = "export"
"""Folder of exports among the files of a registered model."""


def main() -> None:
    """Load the network, write the export, and name the next command."""
    options = command_line().read()
    configure_logging()
    with main_guard(interrupted="interrupted; delete the folder and run the command again"):
        form = ExportOptions(options.format, options.precision)
        check_packages(form)
        if options.log and not options.trained_model.startswith("models:/"):
            raise ValueError(
                "--log needs a registered model, such as models:/NAME@champion, got "
                f"{options.trained_model}"
            )
        folder = Path(options.output)
        write_export(load_saved(options.trained_model), form, folder)
        if options.log:
            path = f"{ARTIFACT_FOLDER}/{form.format}_{form.precision}"
            registry.add_files(options.trained_model, folder, path)
        sys.stdout.write(f"wrote {folder}\n")
        if (folder / RUNNER.name).exists():
            sys.stdout.write(f"try: python {folder / RUNNER.name} IMAGE... --budget-fraction 0.5\n")


def command_line() -> CommandLine:
    """Declare the arguments of the script."""
    parser = CommandLine(__doc__)
    parser.add_argument("trained_model", metavar="TRAINED_MODEL", help=MODEL_HELP)
    parser.add_argument("--output", required=True, help="folder of the export, new or empty")
    parser.add_argument(
        "--format",
        choices=get_args(Format),
        default="onnx",
        help="onnx: ONNX graphs, for ONNX Runtime and OpenVINO; openvino: OpenVINO's own format; "
        "torch: programs of torch.export",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="precision of the arithmetic; bf16 needs --format openvino",
    )
    parser.add_argument(
        "--log", action="store_true", help="store the export with the registered model in MLflow"
    )
    return parser


if __name__ == "__main__":
    main()
