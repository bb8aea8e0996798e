"""Write the FFCV files of a run's images, from its source.

    python pipelines/prepare_data.py --config configs/cifar10.yaml [--data.root=FOLDER ...]

Takes the same settings as training, which does this by itself where files are missing.
`--skip-unreadable` leaves out images that cannot be decoded, and lists them.
"""

import sys

from pipelines.data import DatasetInfo, prepare
from pipelines.run import configure_logging, one_sentence, read_run

SKIP_UNREADABLE = "--skip-unreadable"


def main() -> None:
    """Read the run, prepare its images, and print what there is."""
    arguments = sys.argv[1:]
    run = read_run([argument for argument in arguments if argument != SKIP_UNREADABLE])
    configure_logging()
    with one_sentence():
        info = prepare(run.data, run.model.image_size, skip_unreadable=SKIP_UNREADABLE in arguments)
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
