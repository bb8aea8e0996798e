"""Folders of trained networks: exact contents, half precision, damaged files, names."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ranet import RANet, read_model, write_model
from ranet.model import saved as saved_module
from ranet.model.saved import SETTINGS, TENSORS, SavedModel, find_model, pretrained_names
from tests.support.registered import tiny_saved, trained_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "tiny", tiny_saved())
    return tmp_path / "tiny"


def test_network_from_a_folder_computes_the_same_and_has_its_metadata(folder: Path):
    network = trained_network().model.eval()
    loaded = RANet.from_pretrained(folder)
    images = torch.randn(4, 3, 16, 16)
    assert torch.equal(loaded(images), network(images))
    assert not loaded.training
    assert loaded.metadata == tiny_saved().metadata
    assert RANet(loaded.config).metadata is None


def test_float16_halves_the_file_and_is_computed_with_in_float32(folder: Path, tmp_path: Path):
    saved = tiny_saved()
    write_model(tmp_path / "half", saved, torch.float16)
    sizes = [(each / TENSORS).stat().st_size for each in (folder, tmp_path / "half")]
    assert sizes[1] < 0.75 * sizes[0]  # names and lists of the file format have a constant size
    loaded = read_model(tmp_path / "half")
    for name, tensor in saved.weights.items():
        assert loaded.weights[name].dtype == tensor.dtype
        assert torch.equal(loaded.weights[name], tensor.half().to(tensor.dtype))


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_weight_that_float16_cannot_store_is_rejected_by_name(tmp_path: Path, value: float):
    saved = tiny_saved()
    name = next(name for name, tensor in saved.weights.items() if tensor.is_floating_point())
    weights = {**saved.weights, name: torch.full_like(saved.weights[name], value)}
    with pytest.raises(ValueError, match=rf"weight {name} has values that are not finite"):
        write_model(tmp_path / "bad", SavedModel(saved.metadata, weights), torch.float16)
    assert not (tmp_path / "bad").exists()


def test_network_is_never_overwritten(folder: Path):
    with pytest.raises(FileExistsError, match="contains a network already; delete it"):
        write_model(folder, tiny_saved())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (SETTINGS, None, "settings.json: no such file; the folder of a network contains"),
        (TENSORS, None, "tensors.pt: no such file"),
        (SETTINGS, b"{", "settings.json does not describe a network"),
        (SETTINGS, b"[]", "settings.json does not describe a network"),
        (SETTINGS, b"\xff", "settings.json does not describe a network"),
        (SETTINGS, b"{}", "settings.json does not describe a network"),
        (TENSORS, b"", "tensors.pt is damaged: its SHA-256 is e3b0c44298fc, but settings.json"),
    ],
)
def test_missing_or_damaged_file_is_named(
    folder: Path, file: str, content: bytes | None, message: str
):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_model(folder)


def test_wrong_value_in_the_settings_is_named(folder: Path):
    settings = json.loads((folder / SETTINGS).read_text())
    settings["model"]["growth_rate"] = 0
    (folder / SETTINGS).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"settings.json .*model.growth_rate must be 1 or more"):
        read_model(folder)


def test_weights_of_another_network_are_rejected():
    saved = tiny_saved()
    other = SavedModel(saved.metadata, dict(list(saved.weights.items())[1:]))
    with pytest.raises(ValueError, match="the weights of ranet-tiny do not fit its settings"):
        RANet.from_saved(other)


def test_name_of_a_network_of_the_package_stands_for_its_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(saved_module, "PRETRAINED", tmp_path)
    (tmp_path / "unfinished").mkdir()
    assert pretrained_names() == ("tiny",)
    assert find_model("tiny") == folder
    assert RANet.from_pretrained("tiny").metadata == tiny_saved().metadata
    with pytest.raises(FileNotFoundError, match=r"resnet50 is neither .* one of: tiny"):
        find_model("resnet50")


def test_text_with_other_letters_is_kept(tmp_path: Path):
    saved = tiny_saved()
    metadata = replace(saved.metadata, notes="größer, 小")
    write_model(tmp_path, SavedModel(metadata, saved.weights))
    assert read_model(tmp_path).metadata.notes == "größer, 小"
