"""Classify image files with a registered model, within a compute budget.

python pipelines/predict.py models:/ranet-digits@champion IMAGE... --budget 0.5
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowException
from PIL import Image

from cluster.tracking import registry
from pipelines.data.loading.augmentation import evaluation_boxes
from pipelines.data.sources.images import decode_rgb
from pipelines.run import configure_logging, main_guard


def main() -> None:
    """Load the model, classify the files, and print a table."""
    arguments = read_arguments()
    configure_logging()
    with main_guard():
        model = registry.load(arguments.model_uri)
        size = model.metadata.signature.inputs.inputs[0].shape[-1]
        images = np.stack([read_image(path, size) for path in arguments.images])
        print(format_table(arguments.images, classify(model, images, arguments.budget)))


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model_uri", help="a model in MLflow, such as models:/NAME@champion")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image file")
    parser.add_argument(
        "--budget",
        type=float,
        default=1.0,
        help="mult-adds per image on average, as a share of the last exit's (default: 1)",
    )
    return parser.parse_args(argv)


def read_image(path: Path, size: int) -> np.ndarray:
    """Read a file as evaluation does: (3, size, size), uint8.

    An image of that size is taken whole, of any other the central square.
    """
    pixels = decode_rgb(path.read_bytes(), str(path))
    box = evaluation_boxes(size, np.array([pixels.shape[:2]]))[0]
    top, left, side = (int(value) for value in box[:3])
    square = pixels[top : top + side, left : left + side]
    how = Image.Resampling.BOX if side > size else Image.Resampling.BILINEAR
    resized = Image.fromarray(square).resize((size, size), how)
    return np.asarray(resized).transpose(2, 0, 1)


def classify(model: Any, images: np.ndarray, budget: float) -> pd.DataFrame:
    """Give label, class name, confidence, exit and mult-adds of each image."""
    try:
        return model.predict(images, params={"budget": budget})
    except MlflowException as error:
        raise ValueError(error.message) from error


def format_table(files: Sequence[Path], answers: pd.DataFrame) -> str:
    """One line per file."""
    names = [str(file) for file in files]
    width = max(len("file"), *(len(name) for name in names))
    label_width = max(len("label"), *(len(name) for name in answers["class_name"]))
    lines = [f"{'file':{width}}  {'label':{label_width}}  confidence  exit   mult-adds"]
    columns = (answers[name] for name in ("class_name", "confidence", "exit", "mult_adds"))
    lines += [
        f"{name:{width}}  {label:{label_width}}  {confidence:10.4f}  {number:4d}  "
        f"{cost / 1e6:8.2f} M"
        for name, label, confidence, number, cost in zip(names, *columns, strict=True)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
