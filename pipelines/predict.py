"""Classify image files with a trained network within a compute budget.

Files that cannot be read are listed after the answers for the others; the exit status is then 1.

    python pipelines/predict.py models:/ranet-digits@champion IMAGE... --budget-fraction 0.5
    python pipelines/predict.py FOLDER_OF_NETWORK FOLDER_OF_IMAGES --csv predictions.csv
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.cli import CommandLine, configure_logging, main_guard
from pipelines.data.config import MAX_PIXELS
from pipelines.data.loading.image_files import read_images
from pipelines.data.sources.files import printable
from pipelines.data.sources.scan import images_below
from pipelines.model_packaging.load import MODEL_HELP, load_classifier
from ranet.inference.classifier import BudgetedClassifier

_CHUNK_FILES = 256
"""Images that are read and classified together, so that a large folder fits into memory."""
_COLUMNS: tuple[str, ...] = ("file", "label", "class_name", "confidence", "exit", "mult_adds")


def main() -> None:
    """Load the network, classify the images, and print or write a table."""
    options = command_line().read()
    configure_logging()
    with main_guard("interrupted"):
        classifier = load_classifier(options.trained_model)
        classifier.metadata.thresholds(options.budget_fraction)  # rejects an impossible budget
        files, errors = image_files(options.images)
        rows: list[dict[str, Any]] = []
        preprocessing = classifier.metadata.preprocessing
        for first in range(0, len(files), _CHUNK_FILES):
            chunk = files[first : first + _CHUNK_FILES]
            images, unreadable = read_images(chunk, preprocessing, options.max_pixels)
            rows += classify(classifier, images, options.budget_fraction)
            errors += unreadable
        if options.csv:
            write_csv(options.csv, rows)
            print(f"{len(rows):,} predictions in {options.csv}")
        elif rows:
            print(format_table(rows))
        for error in errors:
            sys.stderr.write(f"error: {error}\n")
        sys.exit(bool(errors))


def command_line() -> CommandLine:
    """Declare the arguments of the script."""
    parser = CommandLine(__doc__)
    parser.add_argument("trained_model", metavar="TRAINED_MODEL", help=MODEL_HELP)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image file, or folder of image files"
    )
    parser.add_argument(
        "--budget-fraction",
        type=float,
        default=1.0,
        help="mean mult-adds per image, as a fraction of the last exit's mult-adds",
    )
    parser.add_argument(
        "--csv", default="", metavar="FILE", help="write a CSV file; empty: print a table"
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        help="max number of pixels of an image, compared before it is decoded",
    )
    return parser


def image_files(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace folders by their images; return an error per empty folder."""
    files: list[str] = []
    errors: list[str] = []
    for path in paths:
        found = images_below(path) if Path(path).is_dir() else [path]
        files += found
        if not found:
            errors.append(f"{printable(path)} contains no image files")
    return files, errors


def classify(
    classifier: BudgetedClassifier, images: dict[str, np.ndarray], budget_fraction: float
) -> list[dict[str, Any]]:
    """Return one row per image: `_COLUMNS` by name."""
    if not images:
        return []
    batch = torch.from_numpy(np.stack(list(images.values())))
    found = classifier.classify(batch, budget_fraction)
    labels = found.labels.tolist()
    columns = (
        [printable(path) for path in images],
        labels,
        [classifier.metadata.class_names[label] for label in labels],
        found.confidences.tolist(),
        found.exits.tolist(),
        found.mult_adds.tolist(),
    )
    return [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]


def write_csv(path: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows to a CSV file with a header."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the predictions as a table, one row per file."""
    width = max(len("file"), *(len(row["file"]) for row in rows))
    label_width = max(len("label"), *(len(row["class_name"]) for row in rows))
    lines = [f"{'file':{width}}  {'label':{label_width}}  confidence  exit   mult-adds"]
    lines += [
        f"{row['file']:{width}}  {row['class_name']:{label_width}}  {row['confidence']:10.4f}  "
        f"{row['exit']:4d}  {row['mult_adds'] / 1e6:8.2f} M"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
