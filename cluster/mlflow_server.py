"""MLflow server of a team, with PostgreSQL, S3 and user accounts.

    python -m cluster.mlflow_server serve               # `make mlflow-server`: until Ctrl-C
    python -m cluster.mlflow_server add-user ada --permission write

Runs are stored in PostgreSQL and artifacts in S3. The server proxies artifacts, so only the server
needs keys for S3. All settings come from the environment, so that no secret is in a file or on a
command line: PGHOST, PGDATABASE, PGUSER and PGPASSWORD (or ~/.pgpass),
MLFLOW_ARTIFACTS_DESTINATION, MLFLOW_SERVER_ALLOWED_HOSTS, MLFLOW_AUTH_ADMIN_PASSWORD, and the S3
settings of boto3.
"""

import os
import secrets
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

import psycopg2
from mlflow import MlflowException
from mlflow.server import get_app_client

from cluster.cli import CommandLine, main_guard
from cluster.errors import TrackingError
from cluster.storage.s3 import ObjectStore, check_uri
from cluster.tracking.client import EXPERIMENT, check_reachable, make_client, tracking_uri
from cluster.tracking.failures import explain

DATABASE = "postgresql+psycopg2://"
"""URI without host: the PG... variables name the database. psycopg2 must be named as driver."""
S3_SECONDS = 10.0
"""Timeout of S3 before the server starts."""
GRANTS = {"experiment": "EDIT", "run": "MANAGE", "registered_model": "EDIT"}
"""Permissions of writers on all experiments and models; they exclude deletion."""


def serve(host: str, port: int, workers: int) -> None:
    """Check the requirements of the server, and replace this process with it.

    Raises:
        ValueError: a setting is missing or wrong.
        OSError: PostgreSQL or S3 cannot be used.
    """
    check_settings(os.environ)
    check_database("MLFLOW_AUTH_ADMIN_PASSWORD" in os.environ)
    check_store(os.environ["MLFLOW_ARTIFACTS_DESTINATION"])
    arguments = [
        sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port),
        "--workers", str(workers), "--app-name", "basic-auth", "--serve-artifacts",
        "--backend-store-uri", DATABASE,
        "--artifacts-destination", os.environ["MLFLOW_ARTIFACTS_DESTINATION"],
    ]  # fmt: skip
    environment = server_environment(os.environ)
    os.execve(sys.executable, arguments, environment)


def server_environment(given: Mapping[str, str]) -> MutableMapping[str, str]:
    """Return the environment of the MLflow server."""
    hosts = _allowed_hosts(given)
    return {
        # Origins of its own pages; without them MLflow accepts only pages from localhost.
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(
            f"{scheme}://{host}"
            for host in hosts
            if "*" not in host
            for scheme in ("http", "https")
        ),
        # Signs the sign-up form; all server processes need the same key.
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its processes outlive the server
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **given,
        "MLFLOW_AUTH_CONFIG_PATH": str(Path(__file__).with_name("mlflow_auth.ini")),
    }


def check_settings(environment: Mapping[str, str]) -> None:
    """Check the destination of artifacts and the list of allowed hosts.

    Raises:
        ValueError: names the variable.
    """
    destination = environment.get("MLFLOW_ARTIFACTS_DESTINATION", "")
    check_uri("MLFLOW_ARTIFACTS_DESTINATION", destination)
    hosts = _allowed_hosts(environment)
    if "" in hosts or "*" in hosts:
        raise ValueError(
            "MLFLOW_SERVER_ALLOWED_HOSTS must list the host names and ports of the server, "
            "such as mlflow.example.com,10.0.0.7:5000, got "
            f"{environment.get('MLFLOW_SERVER_ALLOWED_HOSTS', 'nothing')}"
        )


def _allowed_hosts(environment: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in environment.get("MLFLOW_SERVER_ALLOWED_HOSTS", "").split(",")]


def check_database(has_admin_password: bool) -> None:
    """Check that PostgreSQL accepts our credentials, and that an administrator exists.

    Raises:
        OSError: PostgreSQL cannot be used; its own message is part of the text.
        ValueError: the first start needs a password for the administrator.
    """
    try:
        connection = psycopg2.connect("", connect_timeout=5)
    except psycopg2.OperationalError as error:
        raise OSError(
            f"PostgreSQL cannot be used: {' '.join(str(error).split())}; set PGHOST, PGPORT, "
            "PGDATABASE, PGUSER and PGPASSWORD (or ~/.pgpass) to an existing database"
        ) from None
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('users')")
            [has_users] = cursor.fetchone() or [None]
            if has_users:
                cursor.execute("SELECT count(*) FROM users")
                [has_users] = cursor.fetchone() or [0]
    finally:
        connection.close()
    if not has_users and not has_admin_password:
        raise ValueError(
            "MLFLOW_AUTH_ADMIN_PASSWORD must be set at the first start: it becomes the password "
            "of the user admin, at least 12 characters"
        )


def check_store(destination: str) -> None:
    """Check that the destination of the artifacts can be written.

    Raises:
        OSError: gives the reason.
    """
    with ObjectStore(retry_timeout_seconds=S3_SECONDS) as store:
        store.check_writable(destination.rstrip("/"))


def add_user(name: str, *, may_write: bool) -> str:
    """Create a user on the server of MLFLOW_TRACKING_URI, as its administrator.

    Returns:
        The user's password, which is stored nowhere else.

    Raises:
        TrackingError: the server cannot be used, or does not allow it.
    """
    check_reachable()
    password = secrets.token_urlsafe(18)
    client = make_client(tracking_uri())
    admin = get_app_client("basic-auth", tracking_uri=tracking_uri())
    try:
        if client.get_experiment_by_name(EXPERIMENT) is None:
            client.create_experiment(
                EXPERIMENT
            )  # otherwise the first user who starts a run would own it
        admin.create_user(name, password)
        for kind, permission in GRANTS.items() if may_write else ():
            admin.grant_user_permission(name, kind, "*", permission)
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"MLflow at {tracking_uri()} did not create user {name}: {explain(error)}"
        ) from error
    return password


def command_line() -> CommandLine:
    """Declare the subcommands."""
    parser = CommandLine(__doc__, prog="python -m cluster.mlflow_server")
    commands = parser.add_subcommands(dest="command", required=True)
    server = CommandLine("Run the server until Ctrl-C.")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on")
    server.add_argument("--port", type=int, default=5000, help="port to listen on")
    server.add_argument("--workers", type=int, default=4, help="number of server processes")
    commands.add_subcommand("serve", server, help="run the server until Ctrl-C")
    user = CommandLine("Create a user and print the password, once.")
    user.add_argument("name", help="name of the user")
    user.add_argument(
        "--permission",
        choices=("read", "write"),
        default="read",
        help="read: pull models and read runs; write: train and register as well",
    )
    commands.add_subcommand("add-user", user, help="create a user and print the password, once")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Serve, or create a user."""
    options = command_line().read(argv)
    arguments = options[options.command]
    with main_guard("interrupted"):
        if options.command == "serve":
            serve(arguments.host, arguments.port, arguments.workers)
        password = add_user(arguments.name, may_write=arguments.permission == "write")
    sys.stdout.write(
        f"# ~/.mlflow/credentials of {arguments.name}, readable by that user only (chmod 600)\n"
        f"[mlflow]\nmlflow_tracking_username = {arguments.name}\n"
        f"mlflow_tracking_password = {password}\n"
    )


if __name__ == "__main__":
    main()
