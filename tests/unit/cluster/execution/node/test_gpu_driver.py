"""Check of the NVIDIA driver of a node."""

import pytest
import torch

from cluster.execution.node.gpu_driver import MIN_DRIVER, driver_problem


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Write the shell code of the only `nvidia-smi` on this machine."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(code):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{code}\n")
        program.chmod(0o755)

    return write


@pytest.mark.parametrize("version", ["580.95.05", "595.10"])
def test_new_driver_is_no_problem(nvidia_smi, version):
    nvidia_smi(f"echo {version}; echo {version}")  # a line for each GPU
    assert driver_problem() == ""


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("echo 570.133.20", "its NVIDIA driver is 570.133.20"),
        ("echo no devices; exit 9", "nvidia-smi reports no driver (CalledProcessError"),
        ("", "nvidia-smi reports no driver (IndexError"),
        ("echo Failed to initialize NVML", "nvidia-smi reports no driver (ValueError"),
    ],
)
def test_old_or_missing_driver_is_described_with_the_required_version(nvidia_smi, code, problem):
    nvidia_smi(code)
    text = driver_problem()
    assert text.startswith(problem)
    assert text.endswith(f"needs NVIDIA driver {MIN_DRIVER} or newer on each GPU node")


def test_node_without_the_program_has_no_driver(nvidia_smi):
    assert driver_problem().startswith("nvidia-smi reports no driver (FileNotFoundError")


def test_required_driver_is_that_of_the_installed_torch():
    # NVIDIA raises the required driver with each major version of CUDA.
    assert torch.version.cuda is None or torch.version.cuda.startswith("13.")
