"""Provenance of a run: commit, package versions, Python and hardware."""

import contextlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path


def provenance_tags() -> dict[str, str]:
    """Return commit, package versions, Python version and hardware as MLflow tags."""
    tags = {
        "python": platform.python_version(),
        "hardware.host": socket.gethostname(),
        "hardware.cpu": f"{os.cpu_count()} x {_cpu_model()}",
    }
    for package in ("torch", "ray", "mlflow", "ffcv", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            tags[f"version.{package}"] = importlib.metadata.version(package)
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = "true" if _git("status", "--porcelain") else "false"
    return tags


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _git(*arguments: str) -> str:
    """Return git's output for the working folder, empty outside a repository."""
    try:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
