"""S3 servers of tests, with a role that issues temporary credentials."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.local import s3_server as local
from cluster.local.s3_server import S3Server, s3_client
from cluster.local.services import S3User

TRAINER = "arn:aws:iam::role/trainer"
SESSIONS = {
    "sts": {
        "issuer": "tests",
        "signingKey": base64.b64encode(b"0123456789abcdef" * 2).decode(),
        "tokenDuration": "1h",
        "maxSessionLength": "1h",
    },
    "policies": [
        {
            "name": "all-objects",
            "document": {
                "Version": "2012-10-17",
                "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": ["*"]}],
            },
        }
    ],
    "roles": [
        {
            "roleName": "trainer",
            "roleArn": TRAINER,
            "attachedPolicies": ["all-objects"],
            "trustPolicy": {
                "Version": "2012-10-17",
                "Statement": [
                    {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": ["sts:AssumeRole"]}
                ],
            },
        }
    ],
}
"""A role that users may assume for an hour."""


def make_user(name: str, *actions: str) -> S3User:
    """Make a user with actions such as `Read:bucket` and `List:bucket`."""
    return S3User(name, f"secret-of-{name}", actions or ("Admin",))


ADMIN = make_user("admin")


def environment_of_role(server: S3Server) -> dict[str, str]:
    """Return a client's environment with temporary credentials, as after an AWS login."""
    client = s3_client(server.endpoint, ADMIN, "sts")
    session = client.assume_role(RoleArn=TRAINER, RoleSessionName="tests")["Credentials"]
    client.close()
    return server.environment() | {
        "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
        "AWS_SESSION_TOKEN": session["SessionToken"],
    }


@contextmanager
def s3_server(folder: Path, *users: S3User) -> Iterator[S3Server]:
    """Run a server with an administrator, further users and a role."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sessions.json").write_text(json.dumps(SESSIONS))
    with local.s3_server(folder, ADMIN, *users, options=["-s3.iam.config=sessions.json"]) as server:
        yield server
