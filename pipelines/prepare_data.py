"""Prepare the images of a run: write FFCV files of all splits.

    python pipelines/prepare_data.py --config configs/cifar10.yaml [--data.source_dir=FOLDER ...]

The settings are the settings of pipelines/train.py, which prepares missing files itself. Images in
folders are encoded on all CPUs of the Ray cluster at RAY_ADDRESS, or of this machine. An
interrupted
preparation resumes. Existing files are verified against their checksums.
"""

from functools import partial
from pathlib import Path

from cluster.cli import CommandLine, configure_logging, main_guard
from cluster.execution.parallel_map import parallel_map
from cluster.storage.s3 import is_uri
from pipelines.data.config import SPLITS
from pipelines.data.format.metadata import DatasetInfo, split_path, verify
from pipelines.data.preparation.prepare import prepare
from pipelines.run import Run


def main() -> None:
    """Prepare the images of a run and print their numbers."""
    options = command_line().read()
    run = options.settings
    configure_logging()
    with main_guard():
        info = prepare(
            run.data,
            run.model.image_size,
            skip_unreadable=options.skip_unreadable,
            parallel_map=partial(parallel_map, run.cluster),
        )
        if not is_uri(info.folder):
            for split in SPLITS:  # existing files too
                verify(split_path(Path(info.folder), split))
        print(describe(info))


def command_line() -> CommandLine:
    """Declare the option of an invocation beside the settings of a run."""
    parser = CommandLine(__doc__, Run)
    parser.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="skip images that cannot be decoded, and list them; default: an error",
    )
    return parser


def describe(info: DatasetInfo) -> str:
    """Describe the images of each split and list the skipped ones."""
    lines = [f"{info.folder}: {len(info.class_names)} classes"]
    for split, count in info.num_samples.items():
        lines.append(f"  {split:5}  {count:>9,} images")
        skipped = info.skipped[split]
        if skipped:
            lines.append(f"         {len(skipped):>9,} unreadable, skipped:")
            lines += [f"           {reason}" for reason in skipped]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
