"""Correct the artifact paths of an MLflow database after its folder was moved or copied.

python -m cluster.tracking.relocate mlflow.db
"""

import sys
from pathlib import Path

from cluster.cli import CommandLine, main_guard
from cluster.tracking.database import relocate


def main() -> None:
    """Change the paths, and write the old and the new folder."""
    options = command_line().read()
    with main_guard():
        if not options.database.is_file():
            raise FileNotFoundError(f"{options.database}: no such file; name MLflow's SQLite file")
        before = relocate(options.database)
        sys.stdout.write(f"artifacts: {before} -> {options.database.resolve().parent}\n")


def command_line() -> CommandLine:
    """Declare the argument of the script."""
    parser = CommandLine(__doc__)
    parser.add_argument("database", type=Path, help="SQLite file of MLflow, such as mlflow.db")
    return parser


if __name__ == "__main__":
    main()
