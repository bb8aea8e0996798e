"""Folder of an export: graphs of the stages, manifest, cascade."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ranet.inference.stages import IMAGES, LOGITS, Stage, make_stages, stage_mult_adds
from ranet.model.metadata import ModelMetadata
from ranet.model.network import RANet
from ranet.model.preprocessing import Normalize
from ranet.model.saved import SavedModel

Format: TypeAlias = Literal["onnx", "openvino", "torch"]
Precision: TypeAlias = Literal["fp32", "bf16"]

MANIFEST = "manifest.json"
RUNNER = Path(__file__).with_name("cascade.py")
"""Cascade that travels with the export."""
_PACKAGES = ("torch", "onnx", "onnxruntime", "openvino")
_EXTENSIONS: dict[Format, str] = {"onnx": "onnx", "openvino": "xml", "torch": "pt2"}
_EXAMPLE_IMAGES = 2  # torch would treat a batch size of 1 as a constant


@dataclass(frozen=True)
class ExportOptions:
    """Format and precision of an export."""

    format: Format = "onnx"
    """onnx: ONNX graphs; openvino: OpenVINO's IR; torch: programs of torch.export."""
    precision: Precision = "fp32"
    """Precision of the arithmetic; bf16 needs the format openvino."""

    def __post_init__(self) -> None:
        if self.precision == "bf16" and self.format != "openvino":
            raise ValueError(
                f"--precision bf16 needs --format openvino, got --format {self.format}: ONNX "
                "Runtime has no bfloat16 kernels for CPUs"
            )


def write_export(saved: SavedModel, options: ExportOptions, folder: Path) -> None:
    """Write the export of a trained network to a folder.

    Args:
        saved: the network.
        options: format and precision.
        folder: folder of the export.

    Raises:
        FileExistsError: the folder contains files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} contains files; delete them, or name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    metadata = saved.metadata
    normalize = Normalize(metadata.preprocessing.mean, metadata.preprocessing.std)
    stages = make_stages(RANet.from_saved(saved), normalize)
    examples = _examples(stages, metadata.preprocessing.image_size)
    rows = [
        _write_stage(stages, number, examples, options.format, folder)
        for number in range(1, len(stages) + 1)
    ]
    costs = stage_mult_adds(metadata.model)
    for row, (blocks, exit_) in zip(rows, costs, strict=True):
        row |= {"mult_adds": blocks, "exit_mult_adds": exit_}
    if options.format != "torch":
        shutil.copyfile(RUNNER, folder / RUNNER.name)
    # The manifest is last: a folder without one is incomplete.
    _write_manifest(_manifest(metadata, options, rows, examples), folder)


def check_packages(options: ExportOptions) -> None:
    """Check that the packages of a format are installed.

    Raises:
        ValueError: names the missing package and the command that installs it.
    """
    needed = {"onnx": ("onnx",), "openvino": ("onnx", "openvino"), "torch": ()}
    for name in needed[options.format]:
        if find_spec(name) is None:
            raise ValueError(
                f"--format {options.format} needs the package {name}: pip install '.[export]'"
            )


def _examples(stages: list[Stage], image_size: int) -> dict[str, Tensor]:
    """Return an example of every tensor between the stages, by name."""
    shape = (_EXAMPLE_IMAGES, 3, image_size, image_size)
    examples = {IMAGES: torch.zeros(shape, dtype=torch.uint8)}
    with torch.no_grad():
        for stage in stages:
            outputs = stage(*(examples[name] for name in stage.inputs))
            examples.update(zip(stage.outputs, outputs, strict=True))
    return examples


def _write_stage(
    stages: list[Stage], number: int, examples: dict[str, Tensor], format_: Format, folder: Path
) -> dict[str, Any]:
    """Write the graphs of one stage; return its manifest entry."""
    stage = stages[number - 1]
    read_later = {name for later in stages[number:] for name in later.inputs}
    row: dict[str, Any] = {
        "inputs": stage.inputs,
        "outputs": stage.outputs,
        "last_read": [name for name in stage.inputs if name not in read_later],
        "file": f"stage{number}.{_EXTENSIONS[format_]}",
        "file_without_exit": None,
    }
    variants = {row["file"]: stage}
    if number < len(stages):
        row["file_without_exit"] = f"stage{number}_without_exit.{_EXTENSIONS[format_]}"
        variants[row["file_without_exit"]] = stage.without_exit()
    for name, variant in variants.items():
        program = variant.export(tuple(examples[name] for name in variant.inputs))
        _WRITERS[format_](program, variant, folder / name)
    return row


def _write_onnx(program: ExportedProgram, stage: Stage, file: Path) -> None:
    from pipelines.model_export.onnx_writer import to_onnx  # torch programs do not need onnx

    file.write_bytes(to_onnx(program, stage.inputs, stage.outputs).SerializeToString())


def _write_openvino(program: ExportedProgram, stage: Stage, file: Path) -> None:
    import openvino  # only this format needs it

    onnx_file = file.with_suffix(".onnx")
    _write_onnx(program, stage, onnx_file)
    openvino.save_model(openvino.Core().read_model(onnx_file), file, compress_to_fp16=False)
    onnx_file.unlink()


def _write_torch(program: ExportedProgram, stage: Stage, file: Path) -> None:
    torch.export.save(program, file)


_WRITERS: dict[Format, Callable[[ExportedProgram, Stage, Path], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torch": _write_torch,
}


def _manifest(
    metadata: ModelMetadata,
    options: ExportOptions,
    stages: list[dict[str, Any]],
    examples: dict[str, Tensor],
) -> dict[str, Any]:
    hint = "bf16" if options.precision == "bf16" else "f32"
    return {
        "format": options.format,
        "precision": options.precision,
        # Without a hint OpenVINO computes in bfloat16 where the processor has it.
        "openvino_settings": {"INFERENCE_PRECISION_HINT": hint},
        "versions": _versions(),
        "name": metadata.name,
        "licence": metadata.licence,
        "class_names": metadata.class_names,
        "preprocessing": asdict(metadata.preprocessing),
        "exit_ensemble": metadata.exit_ensemble,
        "min_budget_fraction": metadata.min_budget_fraction,
        "budgets": [
            # JSON has no infinity; the string "inf" can be read as a number.
            {"budget_fraction": row.budget_fraction, "thresholds": list(map(str, row.thresholds))}
            for row in metadata.curve
        ],
        "stages": stages,
        "tensors": {
            name: {"type": str(value.dtype).removeprefix("torch."), "shape": value.shape[1:]}
            for name, value in examples.items()
            if name != LOGITS
        },
    }


def _versions() -> dict[str, str]:
    """Return the versions of the packages that run exports."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return versions


def _write_manifest(manifest: dict[str, Any], folder: Path) -> None:
    """Write the manifest with the checksums of all files and of itself."""
    manifest["sha256"] = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }
    text = json.dumps(json.loads(json.dumps(manifest)), sort_keys=True)
    manifest["manifest_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
