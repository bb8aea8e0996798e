"""File system of checkpoints: outages of S3, and checks before a start."""

import pickle
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from cluster.storage import filesystem as storage
from cluster.storage.filesystem import RetryingS3FileSystem, open_storage, resolve_storage, upload
from tests.support.s3 import make_user, s3_server

pytestmark = pytest.mark.e2e


def test_folder_and_uri_with_options_use_the_file_system_of_ray():
    for place in ("/runs", "s3://bucket/runs?region=eu-west-1", "gs://bucket/runs"):
        assert open_storage(place) == (place, None)


def test_unpickled_file_system_survives_a_restart_of_the_server(s3, bucket, monkeypatch):
    path, filesystem = open_storage(f"s3://{bucket}/runs")
    assert path == f"{bucket}/runs"
    sent = pickle.dumps(filesystem)
    assert b"secret" not in sent
    received = pickle.loads(sent)
    assert received.type_name == "s3"
    s3.kill()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "ATTEMPTS", 1)
        with pytest.raises(OSError, match="AWS Error NETWORK_CONNECTION"):
            RetryingS3FileSystem("us-east-1").open_output_stream(f"{path}/state").close()

    def restart() -> None:
        time.sleep(8)  # longer than Arrow's default retries
        s3.start()

    restarting = Thread(target=restart)
    restarting.start()
    try:
        with received.open_output_stream(f"{path}/state") as stream:
            stream.write(b"all")
    finally:
        restarting.join()
    with received.open_input_stream(f"{path}/state") as stream:
        assert stream.read() == b"all"


def test_upload_raises_if_the_outage_persists(s3, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    (tmp_path / "snapshot.pt").write_bytes(bytes(100 << 20))
    client = s3.client()

    def kill_in_mid_upload() -> None:
        while not client.list_multipart_uploads(Bucket=bucket).get("Uploads"):
            pass
        s3.kill()

    killer = Thread(target=kill_in_mid_upload)
    killer.start()
    with pytest.raises(OSError, match=r"AWS Error NETWORK_CONNECTION during \w+ operation"):
        upload(tmp_path, RetryingS3FileSystem("us-east-1"), f"{bucket}/runs")
    killer.join()
    client.close()
    s3.start()
    _, filesystem = open_storage(f"s3://{bucket}/runs")
    upload(tmp_path, filesystem, f"{bucket}/runs")
    assert filesystem is not None
    assert filesystem.get_file_info(f"{bucket}/runs/snapshot.pt").size == 100 << 20


def test_storage_path_that_cannot_be_written_is_rejected(s3, bucket, monkeypatch):
    client = s3.client()
    assert resolve_storage(f"s3://{bucket}/runs") == f"s3://{bucket}/runs"
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)
    client.close()
    with pytest.raises(
        ValueError,
        match=r"cluster.storage_path cannot be written: s3://no-such-bucket/runs/writable: no such "
        "bucket; create it, or correct the URI",
    ):
        resolve_storage("s3://no-such-bucket/runs")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ValueError, match=r"S3 denies access \(SignatureDoesNotMatch\)"):
        resolve_storage(f"s3://{bucket}/runs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    with pytest.raises(ValueError, match="no credentials for S3 in the environment"):
        resolve_storage(f"s3://{bucket}/runs")


def test_read_only_bucket_is_rejected(tmp_path, monkeypatch):
    reader = make_user("reader", "Read", "List")
    with s3_server(tmp_path, reader) as server:
        for name, value in server.environment(reader).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=r"S3 denies access \(AccessDenied\).*write there"):
            resolve_storage("s3://ready/runs")


class _Expired(BaseHTTPRequestHandler):
    """Response of Amazon S3 to an expired token.

    The test server does not issue it.
    """

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>"
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


def test_expired_token_has_its_own_message(monkeypatch):
    with HTTPServer(("127.0.0.1", 0), _Expired) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.setenv(name, "yesterday")
        with pytest.raises(ValueError, match=r"have expired \(ExpiredToken\); get new ones"):
            resolve_storage("s3://bucket/runs")
        server.shutdown()
