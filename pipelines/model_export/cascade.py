"""Cascade on an exported network; needs numpy, an engine and PIL.

python cascade.py IMAGE... --budget-fraction 0.5
"""

import argparse
import hashlib
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_IMAGES = 64  # images that pass through the stages together; their features fit into the cache
ENGINES = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",)}


@dataclass
class Prediction:
    """Label, confidence, exit (from 1) and mult-adds of each image; arrays (batch,)."""

    labels: np.ndarray
    confidences: np.ndarray
    exits: np.ndarray
    mult_adds: np.ndarray


class CompiledCascade:
    """Classifier of uint8 images, compiled by an engine; not thread-safe.

    An unusable folder, engine or budget raises an OSError, ImportError or ValueError.

    Args:
        folder: folder written by `pipelines/export.py`.
        engine: onnxruntime or openvino; empty: the first that runs the folder's format.
        budget_fraction: mean mult-adds per image, as a fraction of the last exit's mult-adds.
        threads: CPU threads of the engine.
    """

    def __init__(
        self, folder: str | Path, engine: str = "", budget_fraction: float = 1.0, threads: int = 1
    ) -> None:
        self.manifest = manifest = read_manifest(Path(folder))
        self.is_mean = manifest["exit_ensemble"] == "mean_logits"
        self.thresholds = find_thresholds(manifest, budget_fraction)
        module = load_engine(engine or ENGINES[manifest["format"]][0], manifest)
        self.stages: list[tuple[dict[str, Any], Callable[[list[np.ndarray]], Any], bool]] = []
        self.mult_adds, spent = [], 0
        for stage, threshold in zip(manifest["stages"], self.thresholds, strict=True):
            has_exit = threshold <= 1 or self.is_mean
            file = Path(folder, stage["file" if has_exit else "file_without_exit"])
            self.stages.append((stage, compile_stage(module, file, manifest, threads), has_exit))
            spent += stage["mult_adds"] + has_exit * stage["exit_mult_adds"]
            self.mult_adds.append(spent)

    def __call__(self, images: np.ndarray) -> Prediction:
        """Classify images (batch, 3, height, width), uint8; others raise a ValueError."""
        prediction = self._empty(images)
        for first in range(0, len(images), CHUNK_IMAGES):
            for _ in self._steps(images[first : first + CHUNK_IMAGES], prediction, first):
                pass
        return prediction

    def stream(self, images: np.ndarray) -> Iterator[tuple[Prediction, np.ndarray]]:
        """Yield predictions and whether each is final after every exit."""
        prediction, is_final = self._empty(images), np.zeros(len(images), bool)
        for left in self._steps(images, prediction, 0):
            is_final[left] = True
            yield prediction, is_final

    def _empty(self, images: np.ndarray) -> Prediction:
        size = self.manifest["preprocessing"]["image_size"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (3, size, size):
            found = f"{images.dtype} of shape {images.shape}"
            raise ValueError(f"images must be uint8 (batch, 3, {size}, {size}), got {found}")
        return Prediction(*(np.zeros(len(images), kind) for kind in ("i8", "f4", "i8", "i8")))

    def _steps(self, images: np.ndarray, result: Prediction, first: int) -> Iterator[np.ndarray]:
        """Run the stages; yield the images that leave at each exit."""
        remaining = np.arange(len(images))
        values = {"images": (np.ascontiguousarray(images), remaining)}
        logits_sum = np.zeros((len(images), 1), np.float32)
        for number, (stage, run, has_exit) in enumerate(self.stages, start=1):
            if not len(remaining):
                return
            # Features stay with the images of their computation until a stage reads them.
            read = (values[name] for name in stage["inputs"])
            outputs = run([x if r is remaining else x[r.searchsorted(remaining)] for x, r in read])
            values |= {n: (x, remaining) for n, x in zip(stage["outputs"], outputs, strict=False)}
            for name in stage["last_read"]:
                del values[name]
            if not has_exit:
                continue
            logits_sum = logits_sum + outputs[-1] if self.is_mean else outputs[-1]
            logits = logits_sum / number if self.is_mean else logits_sum
            confidences = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
            rows = first + remaining
            result.labels[rows], result.confidences[rows] = logits.argmax(axis=1), confidences
            result.exits[rows], result.mult_adds[rows] = number, self.mult_adds[number - 1]
            # Negated >= instead of <: images with a NaN confidence stay until the last exit.
            stays = ~(confidences >= self.thresholds[number - 1]) & (number < len(self.stages))
            yield rows[~stays]
            if not stays.all():
                remaining, logits_sum = remaining[stays], logits_sum[stays]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of an export and compare it with its checksum."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        checksum, text = manifest.pop("manifest_sha256"), json.dumps(manifest, sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest() == checksum:
            return manifest
    except (ValueError, AttributeError, KeyError):
        pass
    raise ValueError(f"{folder / 'manifest.json'} is damaged; copy the folder again")


def find_thresholds(manifest: dict[str, Any], budget_fraction: float) -> list[float]:
    """Return the thresholds of the largest stored budget within a budget."""
    smallest = math.ceil(manifest["min_budget_fraction"] * 1e4) / 1e4
    if not manifest["min_budget_fraction"] <= budget_fraction <= 1:
        limits = f"{smallest} (the first exit) to 1 (the last exit)"
        raise ValueError(f"budget_fraction must be from {limits}, got {budget_fraction}")
    row = [row for row in manifest["budgets"] if row["budget_fraction"] <= budget_fraction][-1]
    return [*map(float, row["thresholds"][:-1]), -math.inf]


def load_engine(name: str, manifest: dict[str, Any]) -> Any:
    """Import an engine."""
    if name not in (known := ENGINES[manifest["format"]]):
        raise ValueError(f"engine must be {' or '.join(known)} for this folder, got {name}")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"engine {name} is not installed: pip install {name}") from error


def compile_stage(engine: Any, file: Path, manifest: dict[str, Any], threads: int) -> Any:
    """Compile the file of a stage to a function on arrays."""
    for part in [file, file.with_suffix(".bin")][: 2 if file.suffix == ".xml" else 1]:
        if hashlib.sha256(part.read_bytes()).hexdigest() != manifest["sha256"][part.name]:
            raise ValueError(f"{part} is damaged: it does not match its checksum; copy it again")
    try:
        if engine.__name__ == "onnxruntime":
            options = engine.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = threads, 4
            session = engine.InferenceSession(file, options, ["CPUExecutionProvider"])
            names = [value.name for value in session.get_inputs()]
            return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))
        settings = manifest["openvino_settings"] | {"INFERENCE_NUM_THREADS": threads}
        request = engine.Core().compile_model(file, "CPU", settings).create_infer_request()
        return lambda inputs: list(request.infer(inputs, share_inputs=True).values())
    except Exception as error:  # each engine has its own classes
        raise ValueError(
            f"{engine.__name__} {engine.__version__} cannot read {file}, which was written with "
            f"{manifest['versions']}; install a newer version of the engine ({error})"
        ) from error


def read_image(file: str, preprocessing: dict[str, Any]) -> np.ndarray:
    """Read an image file as (3, height, width), uint8."""
    from PIL import Image, ImageOps  # only the command line needs PIL

    size = preprocessing["image_size"]
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    if image.size != (size, size):
        side = max(round(min(image.size) * preprocessing["crop_share"]), 1)
        x, y = (image.width - side) // 2, (image.height - side) // 2
        method = Image.Resampling.BOX if side > size else Image.Resampling.BILINEAR
        image = image.crop((x, y, x + side, y + side)).resize((size, size), method)
    return np.asarray(image).transpose(2, 0, 1)


def main() -> None:
    """Classify the image files of the command line and print a table."""
    parser = argparse.ArgumentParser(description="Classify image files with an exported network.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    parser.add_argument("--budget-fraction", type=float, default=1.0, help="mean mult-adds, 0 to 1")
    options = parser.parse_args()
    try:
        cascade = CompiledCascade(Path(__file__).parent, budget_fraction=options.budget_fraction)
        settings, names = cascade.manifest["preprocessing"], cascade.manifest["class_names"]
        result = cascade(np.stack([read_image(file, settings) for file in options.images]))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    print(f"{'label':20}  confidence  exit   mult-adds  file")
    for k, file in enumerate(options.images):
        row = f"{names[result.labels[k]]:20}  {result.confidences[k]:10.4f}  {result.exits[k]:4d}"
        print(f"{row}  {result.mult_adds[k] / 1e6:8.2f} M  {file}")


if __name__ == "__main__":
    main()
