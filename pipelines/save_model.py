"""Write a trained network and its model card to a folder.

    python pipelines/save_model.py models:/ranet-digits@champion --output digits --float16
    python pipelines/save_model.py runs:/RUN_ID --output cifar10-small --data-name "CIFAR-10"

`RANet.from_pretrained`, predict.py and evaluate.py load the folder; neither MLflow nor the run is
needed. The network is named after the folder.
"""

from dataclasses import replace
from pathlib import Path

import torch

from cluster.cli import CommandLine, configure_logging, main_guard
from pipelines.model_packaging.card import write_network
from pipelines.model_packaging.load import MODEL_HELP, load_saved
from ranet.model.metadata import ModelMetadata
from ranet.model.saved import SavedModel


def main() -> None:
    """Load the network and write its folder."""
    options = command_line().read()
    configure_logging()
    with main_guard("interrupted"):
        saved = load_saved(options.trained_model)
        folder = Path(options.output)
        metadata = described(
            saved.metadata, folder, options.notes, options.data_name, options.licence
        )
        dtype = torch.float16 if options.float16 else torch.float32
        write_network(folder, SavedModel(metadata, saved.weights), dtype)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{folder}: {size / 1e6:.2f} MB; its model card is README.md")


def command_line() -> CommandLine:
    """Declare the arguments of the script."""
    parser = CommandLine(__doc__)
    parser.add_argument("trained_model", metavar="TRAINED_MODEL", help=MODEL_HELP)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--float16", action="store_true", help="store the weights as float16, half the size"
    )
    parser.add_argument(
        "--notes",
        default="",
        metavar="TEXT|FILE",
        help="text for the model card, or a Markdown file with it; empty: as in TRAINED_MODEL",
    )
    parser.add_argument(
        "--data-name",
        default="",
        metavar="TEXT",
        help="name of the data set in the model card; empty: as in TRAINED_MODEL, that is the name "
        "of the folder of the prepared images",
    )
    parser.add_argument(
        "--licence",
        default="",
        metavar="TEXT",
        help="licence of weights and data in the model card; empty: as in TRAINED_MODEL",
    )
    return parser


def described(
    metadata: ModelMetadata, folder: Path, notes: str, data_name: str, licence: str
) -> ModelMetadata:
    """Return metadata with the name of the folder and the given texts."""
    if notes.endswith(".md"):
        notes = Path(notes).read_text(encoding="utf-8").strip()
    return replace(
        metadata,
        name=folder.resolve().name,
        notes=notes or metadata.notes,
        data=replace(metadata.data, name=data_name or metadata.data.name),
        licence=licence or metadata.licence,
    )


if __name__ == "__main__":
    main()
