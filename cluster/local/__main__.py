"""Command line of the local cluster.

python -m cluster.local up --hosts 3         # `make cluster`: until Ctrl-C
python -m cluster.local kill host2           # in a second terminal; also s3 and mlflow
python -m cluster.local start host2
python -m cluster.local preempt host1        # like a cloud's spot instance
"""

import logging
import signal
import sys
from contextlib import suppress
from pathlib import Path

from cluster.cli import CommandLine, Namespace, main_guard
from cluster.local.cluster import LocalCluster, local_cluster
from cluster.local.network import ClusterError
from cluster.local.services import BUCKET

ACTIONS = {
    "kill": "kill members and all their processes",
    "start": "restart killed members; a new head needs new hosts",
    "pause": "freeze members: connections stay open without replies",
    "resume": "continue frozen members",
    "preempt": "preempt hosts like spot instances: notice, then kill",
}
"""Subcommands that change the state of members, and their help."""


def describe(cluster: LocalCluster) -> str:
    """Return the text that `make cluster` prints: IP addresses, environment, first commands."""
    python = Path(sys.executable)
    lines = ["", *(f"{name:8} {cluster.address(name)}" for name in cluster.members), ""]
    lines += [f"export {name}={value}" for name, value in cluster.environment.items()]
    lines += [
        "",
        f"{python} pipelines/submit.py -- python pipelines/train.py \\",
        f"    --config configs/digits.yaml --cluster.storage_path=s3://{BUCKET}/runs \\",
        f"    --cluster.num_workers=[1,{cluster.num_hosts}] "
        f"--data.prepared_dir={cluster.folder}/data",
        "",
        f"dashboard  {cluster.environment['RAY_API_SERVER_ADDRESS']} (log in with RAY_AUTH_TOKEN)",
        f"MLflow     {cluster.environment['MLFLOW_TRACKING_URI']}",
        f"Prometheus make prometheus NODES={cluster.node_list}",
        f"in another terminal: {python} -m cluster.local kill host1 "
        "(start, pause, resume, preempt; s3 and mlflow too)",
        "Ctrl-C stops the cluster; the data of S3 and MLflow stay in " + cluster.folder,
    ]
    return "\n".join(lines)


def command_line() -> CommandLine:
    """Declare the subcommands."""
    parser = CommandLine(__doc__, prog="python -m cluster.local")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("outputs/cluster"),
        help="folder of the cluster's data, logs and description",
    )
    commands = parser.add_subcommands(dest="command", required=True)
    up = CommandLine("Start a cluster and run it until Ctrl-C.")
    up.add_argument("--hosts", type=int, default=2, help="number of Ray nodes besides the head")
    up.add_argument("--cpus", type=int, default=1, help="number of CPUs of each node, for Ray")
    up.add_argument(
        "--no-isolation", action="store_true", help="run members as plain processes, even as root"
    )
    up.add_argument(
        "--fresh", action="store_true", help="start with empty S3 and MLflow servers and disks"
    )
    commands.add_subcommand("up", up, help="start a cluster and run it until Ctrl-C")
    for name, text in ACTIONS.items():
        command = CommandLine(f"{text[0].upper()}{text[1:]}.")
        command.add_argument("members", nargs="+", metavar="MEMBER", help="head, host1, s3, ...")
        if name == "preempt":
            command.add_argument(
                "--seconds", type=float, default=30.0, help="time between notice and kill"
            )
        commands.add_subcommand(name, command, help=text)
    return parser


def main() -> None:
    """Run a cluster in the foreground, or change its members' state."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = command_line().read()
    with main_guard("interrupted"):
        arguments = options[options.command]
        if options.command == "up":
            run_cluster(options.folder, arguments)
        else:
            change_members(options.folder, options.command, arguments)


def run_cluster(folder: Path, options: Namespace) -> None:
    """Start a cluster, print its usage, and run it until Ctrl-C."""
    # Ctrl-C and SIGTERM are the ways to end the cluster, also while it starts.
    with suppress(KeyboardInterrupt), local_cluster(
        folder, num_hosts=options.hosts, cpus_per_host=options.cpus,
        isolated=not options.no_isolation, fresh=options.fresh,
    ) as cluster:  # fmt: skip
        sys.stdout.write(f"{describe(cluster)}\n")
        sys.stdout.flush()
        signal.pause()


def change_members(folder: Path, command: str, options: Namespace) -> None:
    """Apply a subcommand to members of the folder's running cluster."""
    cluster = LocalCluster.find(folder)
    unknown = set(options.members) - set(cluster.members)
    if unknown:
        raise ClusterError(f"no member {', '.join(unknown)}; there are {' '.join(cluster.members)}")
    if command == "preempt":
        for host in options.members:
            cluster.preempt(host, options.seconds)
    else:
        getattr(cluster, command)(*options.members)


if __name__ == "__main__":
    main()
