"""GPU benchmark, run on the CPU with a tiny network."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch

from benchmarks.cuda import training
from benchmarks.cuda.cifar import DeviceBatches, read_cifar
from benchmarks.cuda.items import Item, Results
from benchmarks.cuda.speed import CONTENDERS, make_step
from benchmarks.gpu import TINY
from tests.support.image_files import encoded

ROOT = Path(__file__).parents[3]


def run_benchmark(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(folder), "--rounds=1", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_every_part_gives_results_and_a_second_invocation_measures_nothing(tmp_path: Path):
    done = run_benchmark(tmp_path, "--device=cpu", "--tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    parts = {key.partition(":")[0] for key in results}
    assert parts == {"correctness", "speed", "cascade", "profile"}
    checks = {key: values for key, values in results.items() if key.startswith("correctness")}
    assert len(checks) == 7
    assert all(values["passed"] for values in checks.values())
    assert results["speed: train tiny batch 4"]["ours float32 ratio"] > 0
    assert results["cascade: tiny batch 1"]["75% p99 ms"] > 0
    assert results["profile: train tiny batch 4"]["operations"] > 100
    table = (tmp_path / "results.md").read_text()
    assert all(f"| {key} |" in table for key in results)

    again = run_benchmark(tmp_path, "--device=cpu", "--tiny", "--minutes=0")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((tmp_path / "results.json").read_text()) == results


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few small images of two colours in the files of CIFAR-10."""
    folder = tmp_path_factory.mktemp("cifar")
    for split, count in (("train", 600), ("test", 40)):
        labels = [k % 10 for k in range(count)]
        images = [encoded(np.full((32, 32, 3), 20 * label, np.uint8)) for label in labels]
        table = pyarrow.table({"image": images, "label": labels})
        parquet.write_table(table, folder / f"cifar10-{split}.parquet")
    return folder


def test_interrupted_training_reaches_the_figures_of_an_uninterrupted_one(
    tmp_path: Path, cifar: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "PART_BYTES", 30_000)
    whole, resumed = (
        training.Setting(cifar, tmp_path / name, 2, float("inf"), torch.device("cpu"))
        for name in ("whole", "resumed")
    )
    expected = [item.measure() for item in training.training_items(TINY, whole)]
    clock = iter(range(10_000))
    ticks = SimpleNamespace(monotonic=lambda: float(next(clock)))
    monkeypatch.setattr(training, "time", ticks)
    first, second = training.training_items(TINY, replace(resumed, deadline=1.5))
    assert first.measure() is None
    assert second.measure() is None
    states = list((tmp_path / "resumed").rglob("*.pt"))
    assert len(states) > 2
    assert max(file.stat().st_size for file in states) <= 30_000
    found = [item.measure() for item in training.training_items(TINY, resumed)]
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        assert other is not None
        assert one.keys() == other.keys() >= {"exit 1 %", "exit 2 %", "training minutes"}
        assert {k: v for k, v in one.items() if "%" in k} == {
            k: v for k, v in other.items() if "%" in k
        }


def test_damaged_state_is_named(tmp_path: Path):
    files = training.StateFiles(tmp_path)
    files.save({"epoch": 1}, 2.0)
    files.save({"epoch": 2}, 3.0)
    assert files.load() == ({"epoch": 2}, 3.0)
    (tmp_path / "b00.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged; delete it to train from scratch"):
        files.load()


def test_batches_depend_on_seed_and_epoch_and_have_every_image_once(cifar: Path):
    images = read_cifar(cifar)["train"]
    batches = DeviceBatches(images, 50, seed=3)
    assert len(batches) == 10  # 540 images
    with batches.epoch(1) as all_steps, batches.epoch(1, 4) as later:
        whole = list(all_steps)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[4:], later, strict=True))
    with batches.epoch(2) as other:
        assert not torch.equal(next(other)[1], whole[0][1])
    pixels, labels = whole[0]
    assert pixels.shape == (50, 3, 32, 32)
    # The centre of a crop has the colour of its image.
    assert torch.equal(pixels[:, 0, 16, 16], (20 * labels).to(torch.uint8))
    with DeviceBatches(images, 50).epoch(0) as in_order:
        assert torch.equal(torch.cat([labels for _, labels in in_order]), images.labels)


def test_no_gpu_is_an_error_that_names_the_alternative(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is available")
    done = run_benchmark(tmp_path)
    assert done.returncode == 2
    assert "use --device cpu --tiny" in done.stderr


def test_results_are_kept_over_errors_and_deadlines(tmp_path: Path):
    def fail() -> dict[str, object]:
        raise RuntimeError("out of memory\nmore")

    items = [Item("a", "good", lambda: {"passed": True}), Item("a", "bad", fail)]
    results = Results(tmp_path / "results.json")
    assert not results.run(items, deadline=0)  # no item starts after the deadline
    assert results.run(items, deadline=float("inf"))
    loaded = Results(tmp_path / "results.json")
    assert loaded.values["a: good"]["passed"] is True
    assert loaded.values["a: bad"]["error"] == "RuntimeError: out of memory"


def test_contenders_compute_logits_of_the_same_shape():
    for contender in CONTENDERS:
        step = make_step(TINY, "evaluate", 4, contender, torch.device("cpu"))
        logits = step()
        assert isinstance(logits, torch.Tensor)
        assert logits.shape == (TINY.num_exits, 4, TINY.num_classes)
