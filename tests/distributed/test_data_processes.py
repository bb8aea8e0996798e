"""Data preparation in separate processes: a killed process, and two concurrent ones."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipelines.data.format.beton import open_beton
from pipelines.data.format.metadata import verify
from pipelines.data.preparation.prepare import prepare
from tests.support.image_files import batches_of, folder_config, image_folder, with_settings
from tests.support.paths import PROJECT

pytestmark = pytest.mark.distributed


@pytest.fixture
def config(tmp_path):
    return folder_config(image_folder(tmp_path / "tree"))


def shared_memory() -> set[Path]:
    """List the segments of Python's shared memory."""
    return set(Path("/dev/shm").glob("psm_*"))


def start(script: str, *arguments) -> subprocess.Popen[str]:
    """Run Python code in a separate process."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_writer_leaves_no_file_that_is_accepted(config):
    before = shared_memory()
    process = start(
        """
        import sys, time
        from pipelines.data.preparation.prepare import prepare
        from pipelines.data.sources.base import FileImages
        from tests.support.image_files import folder_config
        from pathlib import Path

        read = FileImages.content

        def slow(self, index):
            if self.name(index).endswith("dog/005.png"):
                print("nearly done", flush=True)
                time.sleep(600)
            return read(self, index)

        FileImages.content = slow
        prepare(folder_config(Path(sys.argv[1]), validation_share=0.01), 32)
        """,
        config.source_dir,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "nearly done\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = Path(config.prepared_dir)
    assert (folder / "train.beton.part").is_file()
    config = with_settings(config, validation_share=0.01)
    with pytest.raises(FileNotFoundError, match=r"train.beton: no such file; run"):
        batches_of(config)
    with pytest.raises(ValueError, match=r"is unfinished|is no FFCV file"):
        open_beton(folder / "train.beton.part")
    prepare(config, 32)
    verify(folder / "train.beton")
    assert not list(folder.glob("*.part"))
    assert shared_memory() <= before


def test_two_processes_can_prepare_the_same_files_concurrently(config):
    script = """
        import sys
        from pipelines.data.preparation.prepare import prepare
        from tests.support.image_files import folder_config
        from pathlib import Path

        print(prepare(folder_config(Path(sys.argv[1])), 32).sha256["train"])
    """
    processes = [start(script, config.source_dir) for _ in range(2)]
    answers = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(answers) == 1
    for split in ("train", "val", "test"):
        verify(Path(config.prepared_dir) / f"{split}.beton")
