"""Command line of the local cluster: `python -m cluster.local`."""

import argparse
import logging
import signal
import sys
from pathlib import Path

from cluster.local.cluster import LocalCluster, local_cluster
from cluster.local.network import ClusterError
from cluster.local.services import BUCKET


def describe(cluster: LocalCluster) -> str:
    """Return addresses, environment and the first commands, as `make cluster` prints them."""
    python = Path(sys.executable)
    lines = ["", *(f"{name:8} {cluster.address(name)}" for name in cluster.members), ""]
    lines += [f"export {name}={value}" for name, value in cluster.environment.items()]
    lines += [
        "",
        f"{python} pipelines/submit.py -- python pipelines/train.py \\",
        f"    --config configs/digits.yaml --cluster.storage_path=s3://{BUCKET}/runs \\",
        f"    --cluster.num_workers=[1,{cluster.num_hosts}] --data.prepared_dir={cluster.folder}/data",
        "",
        f"dashboard  {cluster.environment['RAY_API_SERVER_ADDRESS']} (asks for RAY_AUTH_TOKEN)",
        f"MLflow     {cluster.environment['MLFLOW_TRACKING_URI']}",
        f"Prometheus make watch NODES={cluster.node_list}",
        f"in another terminal: {python} -m cluster.local kill host1 "
        "(start, pause, resume, reclaim; s3 and mlflow too)",
        "Ctrl-C ends it all; the data of S3 and MLflow stay in " + cluster.folder,
    ]
    return "\n".join(lines)


def _up(options: argparse.Namespace) -> None:
    with local_cluster(
        options.folder, num_hosts=options.hosts, cpus_per_host=options.cpus,
        plain=options.plain, fresh=options.fresh,
    ) as cluster:  # fmt: skip
        sys.stdout.write(f"{describe(cluster)}\n")
        sys.stdout.flush()
        signal.pause()


def _act(options: argparse.Namespace) -> None:
    cluster = LocalCluster.find(options.folder)
    unknown = set(options.members) - set(cluster.members)
    if unknown:
        raise ClusterError(f"no member {', '.join(unknown)}; there are {' '.join(cluster.members)}")
    if options.command == "reclaim":
        for host in options.members:
            cluster.reclaim(host, options.seconds)
    else:
        getattr(cluster, options.command)(*options.members)


def main() -> None:
    """Run a cluster in the foreground, or do something to one that runs."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/cluster"),
                        help="data, logs and description of the cluster")  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a cluster and run it until Ctrl-C")
    up.add_argument("--hosts", type=int, default=2, help="Ray nodes beside the head")
    up.add_argument("--cpus", type=int, default=1, help="CPUs that Ray counts on each")
    up.add_argument("--plain", action="store_true", help="plain processes, even as root")
    up.add_argument("--fresh", action="store_true", help="with empty servers and disks")
    up.set_defaults(run=_up)
    for name, help_ in {
        "kill": "end members at once, with all that runs on them",
        "start": "bring killed members back; a new head needs new hosts",
        "pause": "freeze members: connections stay open, nobody answers",
        "resume": "let frozen members go on",
        "reclaim": "take hosts away as spot machines: announced, then killed",
    }.items():
        command = commands.add_parser(name, help=help_)
        command.add_argument("members", nargs="+", metavar="MEMBER")
        command.set_defaults(run=_act)
        if name == "reclaim":
            command.add_argument("--seconds", type=float, default=20.0, help="from notice to end")
    options = parser.parse_args()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options.run(options)
    except KeyboardInterrupt:
        pass
    except ClusterError as error:
        sys.exit(f"error: {error}")
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    main()
