"""Evaluation on a folder of images with the thresholds of the network."""

from pathlib import Path

import pytest
from PIL import Image

from pipelines.data.config import MAX_PIXELS
from pipelines.evaluation.image_folder import evaluate_folder
from tests.support.registered import INFO, tiny_saved, trained_network

BUDGETS = (0.5, 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Test images in class folders."""
    network = trained_network()
    images = network.test_images.permute(0, 2, 3, 1).numpy()
    for number, (pixels, label) in enumerate(
        zip(images, network.test_labels.tolist(), strict=True)
    ):
        file = tmp_path / "images" / INFO.class_names[label] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return tmp_path / "images"


def test_test_images_in_a_folder_have_the_accuracy_of_the_network(folder: Path):
    evaluation = evaluate_folder(tiny_saved(), folder, BUDGETS, MAX_PIXELS)
    expected = trained_network().evaluation
    for found, row in zip(evaluation.exits, expected.exits, strict=True):
        assert (found.test_top1, found.test_top5) == pytest.approx((row.test_top1, row.test_top5))
    for found, row in zip(evaluation.curve, expected.curve, strict=True):
        assert found.thresholds == row.thresholds
        # An image at a threshold may leave at either side of it.
        assert found.test_top1 == pytest.approx(row.test_top1, abs=0.7)
    assert [row.budget_fraction for row in evaluation.reported] == list(BUDGETS)


def test_subset_of_the_classes_keeps_its_labels(folder: Path):
    for name in INFO.class_names[:8]:
        (folder / name).rename(folder.parent / name)
    evaluation = evaluate_folder(tiny_saved(), folder, BUDGETS, MAX_PIXELS)
    network = trained_network()
    kept = network.test_labels >= 8
    correct = network.test.of(network.evaluation.exit_ensemble).correct[-1, kept]
    assert evaluation.exits[-1].test_top1 == pytest.approx(100 * correct.double().mean().item())


def test_foreign_classes_bad_images_and_empty_folders_are_named(folder: Path):
    (folder / "one" / "bad.png").write_text("no image")
    with pytest.raises(ValueError, match=r"bad.png is not a readable image"):
        evaluate_folder(tiny_saved(), folder, BUDGETS, MAX_PIXELS)
    (folder / "cat").mkdir()
    with pytest.raises(ValueError, match=r"no classes of the network: cat; its classes are zero"):
        evaluate_folder(tiny_saved(), folder, BUDGETS, MAX_PIXELS)
    empty = folder.parent / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="there are no images in class folders"):
        evaluate_folder(tiny_saved(), empty, BUDGETS, MAX_PIXELS)
