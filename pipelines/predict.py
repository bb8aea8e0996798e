"""Classify image files with a registered model within a compute budget.

Files that cannot be read are listed after the answers for the others; the exit status is then 1.

python pipelines/predict.py models:/ranet-digits@champion IMAGE... --budget-fraction 0.5
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowException
from PIL import Image

from cluster.cli import CommandLine, configure_logging, main_guard
from cluster.tracking import registry
from pipelines.data.config import MAX_PIXELS
from pipelines.data.loading.augmentation import evaluation_boxes
from pipelines.data.sources.files import printable, read_image_file
from pipelines.data.sources.images import UnreadableImageError, decode_image


def main() -> None:
    """Load the model, classify the images, and print a table."""
    options = command_line().read()
    configure_logging()
    with main_guard():
        model = registry.load(options.model_uri)
        size = model.unwrap_python_model().settings["model"]["image_size"]
        images, errors = read_images(options.images, size, options.max_pixels)
        if images:
            answers = classify(model, np.stack(list(images.values())), options.budget_fraction)
            print(format_table(list(images), answers))
        for error in errors:
            sys.stderr.write(f"error: {error}\n")
        sys.exit(bool(errors))


def command_line() -> CommandLine:
    """Declare the arguments of the script."""
    parser = CommandLine(__doc__)
    parser.add_argument("model_uri", help="URI of a model in MLflow, such as models:/NAME@champion")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    parser.add_argument(
        "--budget-fraction",
        type=float,
        default=1.0,
        help="mean mult-adds per image, as a fraction of the last exit's mult-adds",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        help="max number of pixels of an image, compared before it is decoded",
    )
    return parser


def read_images(
    paths: Sequence[str], size: int, max_pixels: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return images by path, and one sentence per unreadable file."""
    images: dict[str, np.ndarray] = {}
    errors: list[str] = []
    for path in paths:
        try:
            images[path] = read_image(path, size, max_pixels)
        except (UnreadableImageError, OSError) as error:
            errors.append(str(error))
    return images, errors


def read_image(path: str, size: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file as evaluation does: (3, size, size), uint8.

    An image of exactly that size is used unchanged; otherwise its central square is resized.
    """
    pixels = decode_image(read_image_file(path), printable(path), max_pixels).pixels
    box = evaluation_boxes(size, np.array([pixels.shape[:2]]))[0]
    top, left, side = (int(value) for value in box[:3])
    square = pixels[top : top + side, left : left + side]
    resampling = Image.Resampling.BOX if side > size else Image.Resampling.BILINEAR
    resized = Image.fromarray(square).resize((size, size), resampling)
    return np.asarray(resized).transpose(2, 0, 1)


def classify(model: Any, images: np.ndarray, budget_fraction: float) -> pd.DataFrame:
    """Return label, class name, confidence, exit and mult-adds of each image."""
    try:
        return model.predict(images, params={"budget_fraction": budget_fraction})
    except MlflowException as error:
        raise ValueError(error.message) from error


def format_table(files: Sequence[str], predictions: pd.DataFrame) -> str:
    """Format the predictions as a table, one row per file."""
    names = [printable(file) for file in files]
    width = max(len("file"), *(len(name) for name in names))
    label_width = max(len("label"), *(len(name) for name in predictions["class_name"]))
    lines = [f"{'file':{width}}  {'label':{label_width}}  confidence  exit   mult-adds"]
    columns = (predictions[name] for name in ("class_name", "confidence", "exit", "mult_adds"))
    lines += [
        f"{name:{width}}  {label:{label_width}}  {confidence:10.4f}  {number:4d}  "
        f"{cost / 1e6:8.2f} M"
        for name, label, confidence, number, cost in zip(names, *columns, strict=True)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
