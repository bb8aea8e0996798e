"""Example images to try a model with."""

from dataclasses import replace
from pathlib import Path

from PIL import Image

from pipelines.data.loading.loader import Worker, open_batches
from pipelines.run import Run


def save_examples(run: Run, folder: Path, count: int = 5) -> list[Path]:
    """Write the first test images as PNG files named by label.

    Args:
        run: Run whose images are prepared.
        folder: Folder of the PNG files.
        count: Number of images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    batches = open_batches(
        replace(run.data, loader="ffcv"),
        "test",
        image_size=run.model.image_size,
        batch_size=count,
        worker=Worker(),
    )
    files = []
    with batches.epoch(0) as reader:
        images, labels = next(reader)
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True), start=1):
            files.append(folder / f"test{number}_label{label}.png")
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    return files
