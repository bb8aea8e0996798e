"""Example images of a data set."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.data.loading.loader import Worker, open_batches
from pipelines.data.preparation.prepare import prepare
from pipelines.evaluation.examples import save_examples
from tests.support.image_files import with_settings
from tests.support.registered import RUN


def test_example_images_are_the_first_test_images(tmp_path: Path):
    run = replace(
        RUN, data=with_settings(RUN.data, prepared_dir=str(tmp_path / "digits"), crop="none")
    )
    prepare(run.data, run.model.image_size)
    files = save_examples(run, tmp_path / "examples", count=3)
    batches = open_batches(run.data, "test", image_size=16, batch_size=3, worker=Worker())
    with batches.epoch(0) as reader:
        images, labels = next(reader)
        expected = images.permute(0, 2, 3, 1).numpy().copy()
    assert [file.name for file in files] == [
        f"test{k}_label{label}.png" for k, label in enumerate(labels.tolist(), start=1)
    ]
    for file, pixels in zip(files, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), pixels)
