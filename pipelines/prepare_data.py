"""Prepare the images of a run: write FFCV files of all splits.

    python pipelines/prepare_data.py --config configs/cifar10.yaml [--data.source_dir=FOLDER ...]

The settings are the settings of pipelines/train.py, which prepares missing files itself. Images in
folders are encoded on all CPUs of the Ray cluster at RAY_ADDRESS, or of this machine. An
interrupted preparation resumes. Existing files are compared with their source and verified against
their checksums.
"""

import sys
from functools import partial
from pathlib import Path

from cluster.cli import CommandLine, configure_logging, main_guard
from cluster.execution.parallel_map import parallel_map
from cluster.storage.s3 import is_uri
from pipelines.data.config import SPLITS
from pipelines.data.format.metadata import split_path, verify
from pipelines.data.preflight import check_images
from pipelines.data.preparation.prepare import prepare
from pipelines.data.summary import describe
from pipelines.run import Run


def main() -> None:
    """Prepare the images of a run and print their numbers."""
    options = command_line().read()
    run = options.settings
    configure_logging()
    with main_guard():
        if options.dry_run:
            report = check_images(run.data, run.model, run.train.batch_size, is_here=True)
            for finding in report.findings:
                print(f"{finding.name or 'MISSING':<13} {finding.text}")
            sys.exit(any(finding.is_missing for finding in report.findings))
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
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="find the images and decode some of them without writing anything; exit status 0 if "
        "nothing is wrong",
    )
    return parser


if __name__ == "__main__":
    main()
