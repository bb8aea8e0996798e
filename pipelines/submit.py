"""Run a command of this folder on the cluster that RAY_API_SERVER_ADDRESS names.

    python pipelines/submit.py -- python pipelines/train.py --config configs/imagenet.yaml ...
    python pipelines/submit.py --detach -- ...     # and come back: --follow JOB

The status is 0 where the job succeeded, 1 where it failed, 130 where it was stopped; Ctrl-C stops
the following alone.
"""

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.execution.jobs import JobError, check_code, check_public, connect, follow, submit

STATUSES = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 1, JobStatus.STOPPED: 130}


def main() -> None:
    """Submit a command, or come back to one, and leave with its status."""
    arguments = read_arguments()
    logging.disable(logging.WARNING)  # Ray's tale of packing; what is sent is told by us
    address = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")
    try:
        client = connect(address)
        job_id = arguments.follow or send(client, arguments)
        if arguments.detach:
            return
        status = follow(client, job_id, write)
        print(f"{job_id} {status.value}: {client.get_job_info(job_id).message}", file=sys.stderr)
        sys.exit(STATUSES[status])
    except JobError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        told = "the job goes on; come back with --follow, or end it with `ray job stop`"
        print(told, file=sys.stderr)
        sys.exit(130)


def read_arguments() -> argparse.Namespace:
    """Read the command line, or leave with status 2."""
    parser = argparse.ArgumentParser(usage="submit.py [--detach] [--env NAME ...] -- COMMAND ...\n"
                                           "       submit.py --follow JOB")  # fmt: skip
    parser.add_argument("--detach", action="store_true", help="do not wait for the job's end")
    parser.add_argument("--follow", metavar="JOB", help="come back to a job, from its first line")
    parser.add_argument("--env", metavar="NAME", action="append", default=[],
                        help="a variable of this environment that the job gets too, as it does "
                             "MLFLOW_TRACKING_URI")  # fmt: skip
    parser.add_argument("command", nargs="*", help="what to run, after --")
    arguments = parser.parse_args()
    if bool(arguments.follow) == bool(arguments.command):
        parser.error("give either a command after --, or --follow JOB")
    if arguments.follow and arguments.detach:
        parser.error("--follow is to wait for a job, --detach is not to")
    if unset := [name for name in arguments.env if name not in os.environ]:
        parser.error(f"--env {unset[0]}: there is no such variable in this environment")
    if arguments.command:
        try:
            check_public(arguments.command, handed_on(arguments))
        except JobError as error:
            parser.error(str(error))
    return arguments


def handed_on(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the variables that the job gets of this environment."""
    names = ("MLFLOW_TRACKING_URI", *arguments.env)
    return {name: os.environ[name] for name in names if name in os.environ}


def send(client: JobSubmissionClient, arguments: argparse.Namespace) -> str:
    """Send the code of this folder and start the command; say how to come back."""
    folder = Path.cwd()
    print(f"{check_code(folder) / 1e6:.2f} MB of code to send", file=sys.stderr)
    job_id = submit(client, shlex.join(arguments.command), folder, handed_on(arguments))
    print(f"submitted {job_id}; come back: python pipelines/submit.py --follow {job_id}",
          file=sys.stderr)  # fmt: skip
    return job_id


def write(text: str) -> None:
    """Write a part of the job's output at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
