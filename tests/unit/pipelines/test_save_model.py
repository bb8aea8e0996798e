"""Folders of trained networks, written by the script."""

import sys
from pathlib import Path

import pytest
import torch

from pipelines.save_model import main
from ranet import RANet, write_model
from tests.support.registered import tiny_saved


@pytest.fixture
def network(tmp_path: Path) -> Path:
    write_model(tmp_path / "network", tiny_saved())
    return tmp_path / "network"


def save(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["save_model.py", *arguments])
    main()


def test_folder_has_the_given_texts_and_a_card(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "notes.md").write_text("A note.\n")
    output = tmp_path / "digits-small"
    save(
        monkeypatch, str(network), f"--output={output}", "--float16", "--data-name=Digits",
        f"--notes={tmp_path / 'notes.md'}", "--licence=CC0",
    )  # fmt: skip
    loaded = RANet.from_pretrained(output)
    assert loaded.metadata is not None
    assert loaded.metadata.name == "digits-small"
    assert (loaded.metadata.notes, loaded.metadata.licence) == ("A note.", "CC0")
    assert loaded.metadata.data.name == "Digits"
    weights = torch.load(output / "tensors.pt", weights_only=True)
    assert {each.dtype for each in weights.values()} == {torch.float16, torch.int64}
    card = (output / "README.md").read_text()
    assert card.startswith("# digits-small\n")
    assert "A note." in card


def test_folder_with_a_network_is_kept(
    network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = (network / "settings.json").read_bytes()
    with pytest.raises(SystemExit) as ending:
        save(monkeypatch, str(network), f"--output={network}")
    assert ending.value.code == 1
    assert "contains a network already" in capsys.readouterr().err
    assert (network / "settings.json").read_bytes() == before
