"""Folder of an export: manifest, formats, and options that contradict each other."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from pipelines.model_export import folder as export_folder
from pipelines.model_export.folder import ExportOptions, Format, check_packages, write_export
from ranet import RANet, SavedModel, mult_adds
from ranet.model.preprocessing import Normalize
from tests.support.registered import MODEL, trained_network


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_manifest_describes_the_network(form: str, exports: dict[str, Path], saved: SavedModel):
    manifest = json.loads((exports[form] / "manifest.json").read_text())
    assert manifest["class_names"] == list(saved.metadata.class_names)
    assert manifest["preprocessing"]["mean"] == [0.3, 0.3, 0.3]
    assert [row["budget_fraction"] for row in manifest["budgets"]] == [
        row.budget_fraction for row in saved.metadata.curve
    ]
    thresholds = tuple(map(float, manifest["budgets"][0]["thresholds"]))
    assert thresholds == saved.metadata.curve[0].thresholds
    costs = [row["mult_adds"] + row["exit_mult_adds"] for row in manifest["stages"]]
    assert sum(costs) == mult_adds(MODEL)[-1]
    assert manifest["versions"]["torch"]
    assert manifest["tensors"]["images"] == {"type": "uint8", "shape": [3, 16, 16]}
    read = [name for row in manifest["stages"] for name in row["last_read"]]
    assert sorted(read) == sorted(manifest["tensors"])
    for name, checksum in manifest["sha256"].items():
        content = (exports[form] / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == checksum
    files = {file.name for file in exports[form].iterdir()}
    assert files == {*manifest["sha256"], "manifest.json"}


def test_torch_programs_compute_the_logits_of_the_network(saved: SavedModel, tmp_path: Path):
    write_export(saved, ExportOptions("torch"), tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    images = trained_network().test_images[:17]
    values, logits = {"images": images}, []
    with torch.inference_mode():
        for stage in manifest["stages"]:
            program = torch.export.load(tmp_path / stage["file"]).module()
            outputs = program(*(values[name] for name in stage["inputs"]))
            values.update(zip(stage["outputs"], outputs, strict=True))
            logits.append(values["logits"])
        expected = RANet.from_saved(saved)(Normalize((0.3,) * 3, (0.4,) * 3)(images))
    torch.testing.assert_close(torch.stack(logits), expected, rtol=0, atol=5e-5)
    assert not (tmp_path / "cascade.py").exists()


def test_a_folder_with_files_is_not_overwritten(saved: SavedModel, tmp_path: Path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match="contains files; delete them"):
        write_export(saved, ExportOptions(), tmp_path)


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_bf16_needs_openvino(form: Format):
    with pytest.raises(ValueError, match="--precision bf16 needs --format openvino"):
        ExportOptions(form, "bf16")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(export_folder, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package onnx: pip install '\.\[export\]'"):
        check_packages(ExportOptions("onnx"))
    check_packages(ExportOptions("torch"))
