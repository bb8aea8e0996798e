"""Submit a command as a job to the Ray cluster at RAY_API_SERVER_ADDRESS.

    python pipelines/submit.py -- python pipelines/train.py --config configs/imagenet.yaml ...
    python pipelines/submit.py --detach -- ...     # do not wait; later: --follow JOB

The exit status is 0 if the job succeeded, 1 if it failed, 130 if it was stopped. Ctrl-C stops only
this command; the job continues.
"""

import logging
import os
import shlex
import sys
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.cli import CommandLine, Namespace, main_guard, script_command
from cluster.execution.jobs import JobError, check_code, check_public, connect, follow, submit
from pipelines.submit_checks import check_address, check_command

STATUSES = {JobStatus.SUCCEEDED: 0, JobStatus.FAILED: 1, JobStatus.STOPPED: 130}


def main() -> None:
    """Submit or follow a job and exit with its status."""
    options = command_line().read(check=check_options)
    logging.disable(logging.WARNING)  # Ray logs each step of packaging the code
    address = dashboard_address()
    with main_guard(
        "the job continues; follow it with --follow JOB, or stop it with `ray job stop`"
    ):
        client = connect(address)
        job_id = options.follow or send(client, options)
        if options.detach:
            return
        status = follow(client, job_id, write)
        print(f"{job_id} {status.value}: {client.get_job_info(job_id).message}", file=sys.stderr)
        sys.exit(STATUSES[status])


def command_line() -> CommandLine:
    """Declare the arguments of the script."""
    parser = CommandLine(
        __doc__,
        usage="submit.py [--detach] [--env NAME ...] -- COMMAND ...\n       submit.py --follow JOB",
    )
    parser.add_argument("--detach", action="store_true", help="do not wait for the end of the job")
    parser.add_argument(
        "--follow", metavar="JOB", help="follow a submitted job, from its first line of output"
    )
    parser.add_argument(
        "--env",
        metavar="NAME",
        action="append",
        default=[],
        help="environment variable to pass to the job, may be repeated "
        "(MLFLOW_TRACKING_URI is always passed)",
    )
    parser.add_argument("command", nargs="*", default=[], help="command to run, after --")
    return parser


def check_options(options: Namespace) -> None:
    """Check that the options fit together and contain no secret.

    Raises:
        ValueError: The options contradict each other, or something in them is not allowed.
    """
    if bool(options.follow) == bool(options.command):
        raise ValueError("specify either a command after -- or --follow JOB")
    if options.follow and options.detach:
        raise ValueError("--follow waits for a job and --detach does not; use only one of them")
    if unset := [name for name in options.env if name not in os.environ]:
        raise ValueError(f"--env {unset[0]}: no such variable in this environment")
    try:
        check_address(dashboard_address())
        if options.command:
            check_public(options.command, passed_variables(options))
            check_command(options.command, Path.cwd())
    except JobError as error:
        raise ValueError(str(error)) from None


def dashboard_address() -> str:
    """Return the URL of the cluster's dashboard."""
    return os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")


def passed_variables(options: Namespace) -> dict[str, str]:
    """Return the environment variables that are passed to the job."""
    names = ("MLFLOW_TRACKING_URI", *options.env)
    return {name: os.environ[name] for name in names if name in os.environ}


def send(client: JobSubmissionClient, options: Namespace) -> str:
    """Upload the code of this folder and start the job."""
    folder = Path.cwd()
    print(f"{check_code(folder) / 1e6:.2f} MB of code to upload", file=sys.stderr)
    job_id = submit(client, shlex.join(options.command), folder, passed_variables(options))
    print(f"submitted {job_id}; follow it: {script_command()} --follow {job_id}",
          file=sys.stderr)  # fmt: skip
    return job_id


def write(text: str) -> None:
    """Write a part of the job's output immediately."""
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
