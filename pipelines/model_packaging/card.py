"""Model card of a trained network, in Markdown, beside its weights."""

from pathlib import Path

import torch

from ranet.model.metadata import DataRecord, ModelMetadata
from ranet.model.saved import SavedModel, write_model

CARD = "README.md"
"""File of the model card."""


def write_network(folder: Path, saved: SavedModel, dtype: torch.dtype = torch.float32) -> None:
    """Write a trained network and its model card to a folder.

    Raises:
        FileExistsError: the folder contains a network.
        ValueError: a weight is not finite in `dtype`.
    """
    write_model(folder, saved, dtype)
    (folder / CARD).write_text(model_card(saved.metadata, dtype), encoding="utf-8")


def model_card(metadata: ModelMetadata, dtype: torch.dtype) -> str:
    """Describe a trained network: data, training, accuracy, licence, limits.

    Args:
        metadata: description of the network.
        dtype: type of the stored weights.
    """
    last = metadata.exits[-1]
    size = metadata.preprocessing.image_size
    sections = [
        f"# {metadata.name}",
        f"A RANet ([arXiv:2003.07326](https://arxiv.org/abs/2003.07326)) with "
        f"{len(metadata.exits)} exits for {len(metadata.class_names)} classes and images of "
        f"{size} x {size} px. The last exit has {last.test_top1:.2f} % test top-1 at "
        f"{last.mult_adds / 1e6:.1f} M mult-adds.",
        metadata.notes,
        "## Data\n\n" + _data(metadata.data),
        "## Training\n\n"
        f"Seed {metadata.origin.seed}, commit {metadata.origin.commit or 'unknown'}:\n\n"
        f"    {metadata.origin.command}",
        "## Accuracy of every exit\n\n" + _exits(metadata),
        "## Accuracy within a budget\n\n"
        "A budget is the mean cost of an image as a fraction of the last exit's mult-adds. "
        "Thresholds are fitted on the validation images; test images are only scored. "
        + _ensemble(metadata)
        + "\n\n"
        + _curve(metadata),
        "## Licence\n\n" + metadata.licence,
        "## Limits\n\n" + _limits(metadata, dtype),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _data(data: DataRecord) -> str:
    lines = [f"{data.name}.", "", "| split | images | SHA-256 of the images |", "|---|---|---|"]
    lines += [
        f"| {split} | {count:,} | `{data.content_sha256[split][:16]}` |"
        for split, count in data.num_images.items()
    ]
    return "\n".join(lines)


def _exits(metadata: ModelMetadata) -> str:
    lines = [
        "| exit | mult-adds | validation top-1 % | test top-1 % | test top-5 % |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {number} | {row.mult_adds / 1e6:.2f} M | {row.val_top1:.2f} | {row.test_top1:.2f} | "
        f"{row.test_top5:.2f} |"
        for number, row in enumerate(metadata.exits, start=1)
    ]
    return "\n".join(lines)


def _ensemble(metadata: ModelMetadata) -> str:
    if metadata.exit_ensemble == "none":
        return "Each exit predicts from its own logits."
    return "Each exit predicts from the mean logits of all exits passed."


def _curve(metadata: ModelMetadata) -> str:
    lines = [
        "| budget | validation top-1 % | test top-1 % | test mult-adds | % leaving at each exit |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.budget_fraction:.3f} | {row.val_top1:.2f} | {row.test_top1:.2f} | "
        f"{row.test_mult_adds / 1e6:.2f} M | "
        f"{' '.join(f'{share:.1f}' for share in row.exit_shares)} |"
        for row in metadata.curve
    ]
    return "\n".join(lines)


def _limits(metadata: ModelMetadata, dtype: torch.dtype) -> str:
    limits = [
        "- One training with one seed; the spread over seeds is not part of these figures.",
        "- Every image gets one of the "
        f"{len(metadata.class_names)} classes, also an image of something else: "
        f"{', '.join(metadata.class_names[:10])}"
        f"{', ...' if len(metadata.class_names) > 10 else ''}.",
        "- A budget holds on average over images like the validation images; a batch of harder "
        "images costs more.",
    ]
    if dtype != torch.float32:
        limits.append(
            f"- The stored weights are {str(dtype).removeprefix('torch.')} and computed with in "
            "float32; the figures above were measured with the float32 weights."
        )
    return "\n".join(limits)
