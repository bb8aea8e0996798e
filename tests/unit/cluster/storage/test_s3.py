"""S3 URIs, errors of stores, and AWS's config file."""

import os
import pickle
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

import pytest

from cluster.cli import parse_settings
from cluster.storage import filesystem
from cluster.storage.filesystem import open_storage, resolve_storage, upload
from cluster.storage.s3 import ObjectStore, check_uri, check_writable
from pipelines.run import Run


class Store(ThreadingHTTPServer):
    """Answers every request by `answer`, and keeps the requests' methods and paths."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], tuple[int, str]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.requests: list[tuple[str, str]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def respond(self) -> None:
        assert isinstance(self.server, Store)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, unquote(self.path.partition("?")[0])))
        status, code = self.server.answer(self)
        body = b"" if status < 300 else f"<Error><Code>{code}</Code></Error>".encode()
        if status < 300 and self.command == "GET":
            body = b"<ListBucketResult></ListBucketResult>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"0"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = respond  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def store(monkeypatch) -> Iterator[Store]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("KEY_ID", "KEY"):
        monkeypatch.setenv(f"AWS_{'SECRET_' * (name == 'KEY')}ACCESS_{name}", "planted")
    with Store(lambda _: (200, "")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "RequestTimeTooSkewed", "set the clock"),
        (403, "InvalidObjectState", "archived (Glacier)"),
        (400, "KMS.DisabledException", "encryption key"),
        (403, "KMS.NotFoundException", "encryption key"),
        (403, "AccessDenied", "S3 denies access (AccessDenied)"),
        (403, "SignatureDoesNotMatch", "S3 denies access (SignatureDoesNotMatch)"),
        (400, "ExpiredToken", "have expired (ExpiredToken)"),
        (400, "AuthorizationHeaderMalformed", "AWS_DEFAULT_REGION"),
        (404, "NoSuchBucket", "no such bucket"),
        (403, "QuotaExceeded", "quota is full"),
        (507, "InsufficientStorage", "quota is full"),
        (501, "NotImplemented", "does not implement the call"),
        (400, "InvalidBucketName", "does not accept this bucket name"),
        (400, "InvalidRequest", "S3 rejects the call (InvalidRequest)"),
    ],
)
def test_answer_of_the_store_is_named_at_once(status, code, message, store):
    store.answer = lambda _: (status, code)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"cluster.storage_path cannot be written") as caught:
        resolve_storage("s3://team/runs")
    assert message in str(caught.value)
    assert "check the network" not in str(caught.value)
    assert "planted" not in str(caught.value)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("answer", "message"),
    [(501, r"\(NotImplemented\)"), (200, r"\(it ignores If-None-Match\)"), (412, None)],
)
def test_store_without_conditional_writes_cannot_hold_a_lock(answer, message, store):
    store.answer = lambda request: (
        (answer, "NotImplemented") if "If-None-Match" in request.headers else (200, "")
    )
    check_writable("cluster.storage_path", "s3://team/images")
    if message is None:
        check_writable("data.prepared_dir", "s3://team/images", needs_lock=True)
    else:
        with pytest.raises(ValueError, match=f"no conditional writes {message}.*local folder"):
            check_writable("data.prepared_dir", "s3://team/images", needs_lock=True)
        with ObjectStore() as client, pytest.raises((OSError, AssertionError)):
            assert not client.write_new("s3://team/images/lock", b"")
    assert store.requests[-1][0] in ("DELETE", "PUT")


def test_store_that_rejects_checksum_headers_is_used_without_them(store, tmp_path):
    def answer(request: BaseHTTPRequestHandler) -> tuple[int, str]:
        extra = [name for name in request.headers if name.lower().startswith("x-amz-checksum")]
        extra += [
            name for name in request.headers if name.lower() == "x-amz-sdk-checksum-algorithm"
        ]
        return (400, "InvalidRequest") if extra else (200, "")

    store.answer = answer
    assert resolve_storage("s3://team/runs") == "s3://team/runs"
    (tmp_path / "snapshot.pt").write_bytes(b"content")
    path, arrow = open_storage("s3://team/runs")
    upload(tmp_path, arrow, path)
    assert ("PUT", "/team/runs/snapshot.pt") in store.requests


@pytest.mark.parametrize(
    "folder", ["a b", "a%20b", "café", "a+b", "me@home", "a=b", "deep/er", "#1"]
)
def test_uri_is_read_in_the_same_way_by_all_clients(folder, store, tmp_path):
    uri = f"s3://team/{folder}"
    check_uri("data.prepared_dir", uri)
    assert parse_settings(Run, [f"--cluster.storage_path={uri}/"]).cluster.storage_path == uri
    assert resolve_storage(uri) == uri
    (tmp_path / "snapshot.pt").write_bytes(b"content")
    path, arrow = open_storage(uri)
    upload(tmp_path, arrow, path)
    written = {path for method, path in store.requests if method == "PUT"}
    assert {f"/team/{folder}/writable", f"/team/{folder}/snapshot.pt"} <= written
    first = folder.partition("/")[0]
    assert all(path.startswith(f"/team/{first}") for path in written)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("s3://team", "a folder in the bucket is missing"),
        ("s3://team/", "a folder in the bucket is missing"),
        ("s3://my_bucket/runs", "not 'my_bucket'"),
        ("s3://Team/runs", "not 'Team'"),
        ("s3://ab/runs", "not 'ab'"),
        ("s3:///runs", "not ''"),
        ("s3://team//runs", "empty segment"),
        ("s3://team/a/../b", "segment . or .."),
        ("s3://team/a\nb", "control character"),
        ("http://team/runs", "does not begin with s3://"),
        ("s3://key:secret@team/runs", "without keys"),
    ],
)
def test_uri_that_cannot_be_used_is_rejected_with_the_reason(uri, reason):
    with pytest.raises(ValueError, match=r"data.prepared_dir must be") as caught:
        check_uri("data.prepared_dir", uri)
    assert reason in str(caught.value)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize("where", ["environment", "config", "profile", "services"])
def test_endpoint_region_and_keys_of_the_aws_config_file_serve_all_clients(
    where, store, tmp_path, monkeypatch
):
    keys = "aws_access_key_id = planted\naws_secret_access_key = planted\n"
    endpoint = f"endpoint_url = {store.endpoint}\n"
    text = {
        "environment": "",
        "config": f"[default]\nregion = eu-north-1\n{endpoint}{keys}",
        "profile": f"[profile lab]\nregion = eu-north-1\n{endpoint}{keys}",
        "services": f"[default]\nregion = eu-north-1\nservices = lab\n{keys}"
        f"[services lab]\ns3 =\n  {endpoint}",
    }[where]
    if where == "environment":
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    else:
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        (tmp_path / "config").write_text(text)
    if where == "profile":
        monkeypatch.setenv("AWS_PROFILE", "lab")
    assert resolve_storage("s3://team/runs") == "s3://team/runs"
    _, arrow = open_storage("s3://team/runs")
    assert arrow is not None
    sent = pickle.dumps(arrow)
    assert b"planted" not in sent
    received = pickle.loads(sent)
    assert received.region == "eu-north-1"
    before = len(store.requests)
    received.create_dir("team/runs/x")
    assert len(store.requests) > before


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("AWS_ENDPOINT_URL", "127.0.0.1:9000", "must be http://HOST:PORT"),
        ("AWS_PROFILE", "missing", r"\(missing\).*AWS_PROFILE"),
    ],
)
def test_wrong_aws_variable_is_named(variable, value, message, store, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        resolve_storage("s3://team/runs")


def test_slow_upload_is_logged(store, tmp_path, monkeypatch, caplog):
    def answer(request: BaseHTTPRequestHandler) -> tuple[int, str]:
        if "snapshot" in request.path:
            time.sleep(0.6)
        return 200, ""

    path, arrow = open_storage("s3://team/runs")
    store.answer = answer
    (tmp_path / "snapshot.pt").write_bytes(b"content")
    monkeypatch.setattr(filesystem, "SLOW_SECONDS", 0.2)
    with caplog.at_level("WARNING"):
        upload(tmp_path, arrow, path)
    assert "s3://team/runs: not uploaded after 0 seconds; S3 is slow or away" in caplog.text
