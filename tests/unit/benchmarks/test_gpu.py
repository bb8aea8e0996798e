"""GPU benchmark, run on the CPU with a tiny network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.cuda.items import Item, Results
from benchmarks.cuda.speed import CONTENDERS, make_step
from benchmarks.gpu import TINY

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
