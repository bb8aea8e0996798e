"""Cascade of an export: equal to PyTorch; bad input."""

import ast
import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipelines.model_export.cascade import CompiledCascade, Prediction
from pipelines.model_export.folder import RUNNER, ExportOptions, write_export
from ranet import BudgetedClassifier, SavedModel
from tests.support.registered import trained_network

CASES = [("onnx", "onnxruntime"), ("onnx", "openvino"), ("openvino", "openvino")]
FRACTIONS = (0.45, 0.6, 0.75, 0.9, 1.0)


def assert_equal_predictions(actual: Prediction, expected) -> None:
    for name in ("labels", "exits", "mult_adds"):
        assert np.array_equal(getattr(actual, name), getattr(expected, name).numpy()), name
    np.testing.assert_allclose(actual.confidences, expected.confidences.numpy(), atol=1e-5)


@pytest.mark.parametrize(("form", "engine"), CASES)
def test_predictions_equal_those_of_pytorch(
    form: str, engine: str, exports: dict[str, Path], saved: SavedModel
):
    images = trained_network().test_images[:150]
    classifier = BudgetedClassifier(saved)
    exits = set()
    for fraction in FRACTIONS:
        cascade = CompiledCascade(exports[form], engine, fraction)
        for batch in (1, 17, 150):
            expected = classifier.classify(images[:batch], fraction)
            assert_equal_predictions(cascade(images[:batch].numpy()), expected)
        exits |= set(expected.exits.tolist())
    assert len(exits) > 1, "the images leave at different exits"


def test_predictions_of_an_ensemble_equal_those_of_pytorch(saved: SavedModel, tmp_path: Path):
    ensemble = SavedModel(replace(saved.metadata, exit_ensemble="mean_logits"), saved.weights)
    write_export(ensemble, ExportOptions("onnx"), tmp_path)
    images = trained_network().test_images[:40]
    for fraction in FRACTIONS:
        expected = BudgetedClassifier(ensemble).classify(images, fraction)
        cascade = CompiledCascade(tmp_path, budget_fraction=fraction)
        assert_equal_predictions(cascade(images.numpy()), expected)


def test_stream_ends_with_the_prediction_of_a_call(exports: dict[str, Path]):
    images = trained_network().test_images[:30].numpy()
    cascade = CompiledCascade(exports["onnx"], budget_fraction=0.6)
    num_final = []
    prediction = None
    for prediction, is_final in cascade.stream(images):
        num_final.append(int(is_final.sum()))
        assert (prediction.exits > 0).all()
    assert num_final == sorted(num_final)
    assert num_final[-1] == len(images)
    expected = cascade(images)
    for name, values in vars(expected).items():
        np.testing.assert_allclose(getattr(prediction, name), values, rtol=1e-5)


def test_a_skipped_exit_is_not_computed(exports: dict[str, Path], tmp_path: Path):
    budgets = [{"budget_fraction": 0, "thresholds": ["inf", "inf", "0"]}]
    folder = edited(exports["onnx"], tmp_path, budgets=budgets, exit_ensemble="none")
    cascade = CompiledCascade(folder)
    assert [has_exit for _, _, has_exit in cascade.stages] == [False, False, True]
    images = trained_network().test_images[:3].numpy()
    prediction = cascade(images)
    costs = [(row["mult_adds"], row["exit_mult_adds"]) for row in cascade.manifest["stages"]]
    assert set(prediction.mult_adds) == {sum(blocks for blocks, _ in costs) + costs[-1][1]}


def edited(folder: Path, tmp_path: Path, **changes) -> Path:
    """Copy an export and change its manifest consistently."""
    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "manifest.json").read_text()) | changes
    del manifest["manifest_sha256"]
    text = json.dumps(manifest, sort_keys=True)
    manifest["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_no_images_give_no_predictions(exports: dict[str, Path]):
    prediction = CompiledCascade(exports["onnx"])(np.zeros((0, 3, 16, 16), np.uint8))
    assert all(len(values) == 0 for values in vars(prediction).values())


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 3, 16, 16), np.float32),
        np.zeros((3, 16, 16), np.uint8),
        np.zeros((2, 3, 16, 17), np.uint8),
        np.zeros((2, 16, 16, 3), np.uint8),
    ],
)
def test_images_of_another_shape_or_type_are_rejected(images: np.ndarray, exports: dict[str, Path]):
    with pytest.raises(ValueError, match=r"images must be uint8 \(batch, 3, 16, 16\), got"):
        CompiledCascade(exports["onnx"])(images)


@pytest.mark.parametrize("fraction", [0.001, 1.1, float("nan")])
def test_an_impossible_budget_is_rejected(fraction: float, exports: dict[str, Path]):
    with pytest.raises(ValueError, match=r"budget_fraction must be from 0\.\d+ \(the first exit\)"):
        CompiledCascade(exports["onnx"], budget_fraction=fraction)


@pytest.mark.parametrize(
    ("form", "name"),
    [("onnx", "stage3.onnx"), ("openvino", "stage3.bin"), ("onnx", "manifest.json")],
)
@pytest.mark.parametrize("is_truncated", [False, True])
def test_a_damaged_file_is_named(
    form: str, name: str, is_truncated: bool, exports: dict[str, Path], tmp_path: Path
):
    shutil.copytree(exports[form], tmp_path / "copy")
    file = tmp_path / "copy" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content[:-10] if is_truncated else content)
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        CompiledCascade(tmp_path / "copy")


@pytest.mark.parametrize("name", ["stage3.onnx", "manifest.json"])
def test_a_missing_file_is_named(name: str, exports: dict[str, Path], tmp_path: Path):
    shutil.copytree(exports["onnx"], tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        CompiledCascade(tmp_path / "copy")


def test_an_engine_that_is_not_installed_is_named(exports: dict[str, Path], monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match="engine openvino is not installed: pip install openvino"):
        CompiledCascade(exports["onnx"], "openvino")


def test_an_engine_that_does_not_run_the_format_is_rejected(exports: dict[str, Path]):
    with pytest.raises(ValueError, match="engine must be openvino for this folder"):
        CompiledCascade(exports["openvino"], "onnxruntime")


def test_an_engine_older_than_the_graph_is_named(exports: dict[str, Path], tmp_path: Path):
    shutil.copytree(exports["onnx"], tmp_path / "copy")
    file = tmp_path / "copy" / "stage3.onnx"
    graph = onnx.load(file)
    graph.opset_import[0].version = 99
    onnx.save(graph, file)
    manifest = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    checksums = manifest["sha256"] | {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
    folder = edited(tmp_path / "copy", tmp_path, sha256=checksums)
    with pytest.raises(ValueError, match=r"onnxruntime .* cannot read .*stage3\.onnx.*newer"):
        CompiledCascade(folder)


def test_the_cascade_is_short_and_needs_numpy_and_an_engine_only():
    text = RUNNER.read_text()
    assert len(text.splitlines()) <= 200
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "PIL"}
