"""Trained networks in folders: metadata as JSON, weights as tensors, nothing pickled."""

import hashlib
import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ranet.model.metadata import ModelMetadata, from_json, to_json

SETTINGS = "settings.json"
"""File of the metadata and of the checksum of the tensors; written last."""
TENSORS = "tensors.pt"
"""File of the state dict of the network."""
PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Folder of the networks that are part of this package, one folder each."""


@dataclass(frozen=True, eq=False)
class SavedModel:
    """Trained network: metadata and state dict, on the CPU."""

    metadata: ModelMetadata
    """Description of the network."""
    weights: dict[str, Tensor]
    """State dict of the `RANet`; floating-point tensors are float32."""


def write_model(folder: Path, saved: SavedModel, dtype: torch.dtype = torch.float32) -> None:
    """Write a trained network to a folder, which is created if missing.

    Args:
        folder: folder of the network.
        saved: the network.
        dtype: type of the stored floating-point weights: float32, or float16 for half the size.

    Raises:
        FileExistsError: the folder contains a network.
        ValueError: a weight is not finite in `dtype`.
    """
    if (folder / SETTINGS).exists():
        raise FileExistsError(
            f"{folder} contains a network already; delete it, or name another folder"
        )
    weights = {name: _stored(name, tensor, dtype) for name, tensor in saved.weights.items()}
    file = io.BytesIO()
    torch.save(weights, file)
    settings = {"tensors_sha256": hashlib.sha256(file.getbuffer()).hexdigest()}
    settings |= to_json(saved.metadata)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TENSORS).write_bytes(file.getbuffer())
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    (folder / SETTINGS).write_text(f"{text}\n", encoding="utf-8")


def read_model(folder: Path) -> SavedModel:
    """Read a trained network from its folder, without executing code.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file is damaged.
    """
    for file in (folder / SETTINGS, folder / TENSORS):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no such file; the folder of a network contains {SETTINGS} and {TENSORS}"
            )
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        checksum = settings.pop("tensors_sha256")
        metadata = from_json(settings)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{folder / SETTINGS} does not describe a network ({error}); write the folder again"
        ) from error
    content = (folder / TENSORS).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != checksum:
        raise ValueError(
            f"{folder / TENSORS} is damaged: its SHA-256 is {found[:12]}, but {SETTINGS} lists "
            f"{str(checksum)[:12]}; copy the folder again"
        )
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{folder / TENSORS} is not a file of tensors; write the folder again"
        ) from error
    return SavedModel(metadata, {name: _loaded(tensor) for name, tensor in weights.items()})


def pretrained_names() -> tuple[str, ...]:
    """Return the names of this package's trained networks."""
    return tuple(sorted(file.parent.name for file in PRETRAINED.glob(f"*/{SETTINGS}")))


def find_model(name: str | Path) -> Path:
    """Return the folder of a trained network.

    Args:
        name: name of a network that is part of this package, or a folder.

    Raises:
        FileNotFoundError: there is no such network and no such folder.
    """
    names = pretrained_names()
    if str(name) in names:
        return PRETRAINED / name
    if Path(name).is_dir():
        return Path(name)
    raise FileNotFoundError(
        f"{name} is neither a trained network of this package nor a folder; give a folder or one "
        f"of: {', '.join(names) or 'none is installed'}"
    )


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    stored = tensor.detach().cpu()
    if not stored.is_floating_point():
        return stored.clone()
    stored = stored.to(dtype, copy=True)
    if not stored.isfinite().all():
        raise ValueError(
            f"weight {name} has values that are not finite in {dtype}; write float32, or check "
            "whether training diverged"
        )
    return stored


def _loaded(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
