"""Submit a command as a job to the Ray cluster at RAY_API_SERVER_ADDRESS.

    python pipelines/submit.py -- python pipelines/train.py --config configs/imagenet.yaml ...
    python pipelines/submit.py --detach -- ...     # do not wait; later: --follow JOB

The exit status is 0 if the job succeeded, 1 if it failed, 130 if it was stopped. Ctrl-C stops only
this command; the job continues.
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
    """Submit a job or follow a submitted one; exit with the status of the job."""
    arguments = read_arguments()
    logging.disable(logging.WARNING)  # Ray logs each step of packaging the code
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
        message = "the job continues; follow it with --follow JOB, or stop it with `ray job stop`"
        print(message, file=sys.stderr)
        sys.exit(130)


def read_arguments() -> argparse.Namespace:
    """Parse and check the command line, or exit with status 2."""
    parser = argparse.ArgumentParser(usage="submit.py [--detach] [--env NAME ...] -- COMMAND ...\n"
                                           "       submit.py --follow JOB")  # fmt: skip
    parser.add_argument("--detach", action="store_true", help="do not wait for the end of the job")
    parser.add_argument(
        "--follow", metavar="JOB", help="follow a submitted job, from its first line of output"
    )
    parser.add_argument("--env", metavar="NAME", action="append", default=[],
                        help="environment variable to pass to the job "
                             "(MLFLOW_TRACKING_URI is always passed)")  # fmt: skip
    parser.add_argument("command", nargs="*", help="command to run, after --")
    arguments = parser.parse_args()
    if bool(arguments.follow) == bool(arguments.command):
        parser.error("specify either a command after -- or --follow JOB")
    if arguments.follow and arguments.detach:
        parser.error("--follow waits for a job and --detach does not; use only one of them")
    if unset := [name for name in arguments.env if name not in os.environ]:
        parser.error(f"--env {unset[0]}: no such variable in this environment")
    if arguments.command:
        try:
            check_public(arguments.command, passed_variables(arguments))
        except JobError as error:
            parser.error(str(error))
    return arguments


def passed_variables(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the environment variables that are passed to the job."""
    names = ("MLFLOW_TRACKING_URI", *arguments.env)
    return {name: os.environ[name] for name in names if name in os.environ}


def send(client: JobSubmissionClient, arguments: argparse.Namespace) -> str:
    """Upload the code of this folder and start the command as a job."""
    folder = Path.cwd()
    print(f"{check_code(folder) / 1e6:.2f} MB of code to upload", file=sys.stderr)
    job_id = submit(client, shlex.join(arguments.command), folder, passed_variables(arguments))
    print(f"submitted {job_id}; follow it: python pipelines/submit.py --follow {job_id}",
          file=sys.stderr)  # fmt: skip
    return job_id


def write(text: str) -> None:
    """Write a part of the job's output immediately."""
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
