"""The S3 server that other tests build on."""

import time

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from tests.support.s3 import make_user, s3_server

pytestmark = pytest.mark.e2e


def test_restarted_server_has_the_same_objects_and_endpoint(s3, bucket):
    client, endpoint = s3.client(), s3.endpoint
    client.put_object(Bucket=bucket, Key="folder/object", Body=b"content")
    s3.kill()
    with pytest.raises(EndpointConnectionError):
        client.head_object(Bucket=bucket, Key="folder/object")
    began = time.monotonic()
    s3.start()
    assert time.monotonic() - began < 30
    assert s3.endpoint == endpoint
    answer = client.get_object(
        Bucket=bucket,
        Key="folder/object",
        Range="bytes=3-",
        IfMatch='"9a0364b9e99bb480dd25e1f0284c8555"',
    )
    assert answer["Body"].read() == b"tent"
    client.close()


def test_users_are_restricted_to_their_permissions(tmp_path):
    reader = make_user("reader", "Read:open", "List:open")
    with s3_server(tmp_path, reader) as server:
        admin, client = server.client(), server.client(reader)
        for name in ("open", "shut"):
            admin.create_bucket(Bucket=name)
            admin.put_object(Bucket=name, Key="object", Body=b"content")
        assert client.get_object(Bucket="open", Key="object")["Body"].read() == b"content"
        for call, arguments in (
            (client.get_object, {"Bucket": "shut"}),
            (client.put_object, {"Bucket": "open", "Body": b""}),
        ):
            with pytest.raises(ClientError, match="AccessDenied"):
                call(Key="object", **arguments)
        admin.close()
        client.close()
