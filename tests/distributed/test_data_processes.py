"""Data preparation in separate processes: a killed process, and two concurrent ones."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from multiprocessing.shared_memory import SharedMemory
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


def abandoned_memory() -> set[Path]:
    """List the segments of Python's shared memory that no process uses."""
    segments = set(Path("/dev/shm").glob("psm_*"))
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # the process has ended, or belongs to another user
            used = maps.read_text()
            segments = {path for path in segments if str(path) not in used}
    return segments


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Function that runs Python code in a process of the test."""
    with ExitStack() as stack:

        def start_process(script: str, *arguments) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
                cwd=PROJECT,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start_process


def test_abandoned_shared_memory_is_found():
    segment = SharedMemory(create=True, size=1)
    path = Path("/dev/shm") / segment.name
    try:
        assert path not in abandoned_memory()
        segment.close()
        assert path in abandoned_memory()
    finally:
        segment.unlink()


def test_killed_writer_leaves_no_file_that_is_accepted(config, start):
    before = abandoned_memory()
    process = start(
        """
        import sys, time
        from pipelines.data.preparation.prepare import prepare
        from pipelines.data.format.encoding import Encoder
        from tests.support.image_files import folder_config
        from pathlib import Path

        encode = Encoder.encode

        def slow(self, index):
            if self.images.name(index).endswith("dog/005.png"):
                print("nearly done", flush=True)
                time.sleep(600)
            return encode(self, index)

        Encoder.encode = slow
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
    deadline = time.monotonic() + 10
    while abandoned_memory() - before:  # other processes create and remove segments meanwhile
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_two_processes_can_prepare_the_same_files_concurrently(config, start):
    script = """
        import sys
        from pipelines.data.preparation.prepare import prepare
        from tests.support.image_files import folder_config
        from pathlib import Path

        print(prepare(folder_config(Path(sys.argv[1])), 32).sha256["train"])
    """
    processes = [start(script, config.source_dir) for _ in range(2)]
    answers = {process.communicate(timeout=240)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(answers) == 1
    for split in ("train", "val", "test"):
        verify(Path(config.prepared_dir) / f"{split}.beton")
