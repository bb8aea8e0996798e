"""Write the FFCV files of a run's images, from its source.

    python pipelines/prepare_data.py --config configs/cifar10.yaml [--data.source_dir=FOLDER ...]

Takes the same settings as training, which does this by itself where files are missing. Images in
folders are encoded on all CPUs of the Ray cluster that RAY_ADDRESS names, or of this machine.
Stopped and started again it goes on. Files that are there are held against their checksums.
`--skip-unreadable` leaves out images that cannot be decoded, and lists them.
"""

import sys
from functools import partial
from pathlib import Path

from cluster.execution.parallel_map import parallel_map
from cluster.storage.s3 import is_uri
from pipelines.data.config import SPLITS
from pipelines.data.format.metadata import DatasetInfo, split_path, verify
from pipelines.data.preparation.prepare import prepare
from pipelines.run import configure_logging, main_guard, read_run

SKIP_UNREADABLE = "--skip-unreadable"


def main() -> None:
    """Read the run, prepare its images, and print what there is."""
    arguments = sys.argv[1:]
    run = read_run([argument for argument in arguments if argument != SKIP_UNREADABLE])
    configure_logging()
    with main_guard():
        info = prepare(
            run.data,
            run.model.image_size,
            skip_unreadable=SKIP_UNREADABLE in arguments,
            parallel_map=partial(parallel_map, run.cluster),
        )
        if not is_uri(info.folder):
            for split in SPLITS:  # read back from the disk, also where they were there before
                verify(split_path(Path(info.folder), split))
        print(describe(info))


def describe(info: DatasetInfo) -> str:
    """Say how many images each split has, and which were left out."""
    lines = [f"{info.folder}: {len(info.class_names)} classes"]
    for split, count in info.num_samples.items():
        lines.append(f"  {split:5}  {count:>9,} images")
        skipped = info.skipped[split]
        if skipped:
            lines.append(f"         {len(skipped):>9,} unreadable, left out:")
            lines += [f"           {reason}" for reason in skipped]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
