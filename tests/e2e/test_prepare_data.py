"""The script that prepares images, as a person calls it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.image_files import image_folder

pytestmark = pytest.mark.e2e

PROJECT = Path(__file__).parents[2]


def test_the_script_prepares_and_lists_what_it_left_out(tmp_path):
    root = image_folder(tmp_path / "tree")
    (root / "val" / "cat" / "bad.jpg").write_bytes(b"")
    command = [
        sys.executable,
        "pipelines/prepare_data.py",
        "--data.source=imagefolder",
        f"--data.root={root}",
        f"--data.folder={tmp_path / 'prepared'}",
    ]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command.append("--skip-unreadable")
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=True
    )
    assert "1 unreadable, left out:" in done.stdout
    assert f"{root}/val/cat/bad.jpg is not a readable image" in done.stdout
