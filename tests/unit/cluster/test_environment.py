"""Environment variables that Ray, the caches and calls over HTTP cannot use."""

import pytest

from cluster.environment import check_cache_folder, check_ray_settings, proxy_remedy
from cluster.errors import RunError
from pipelines.preflight import preflight
from pipelines.run import Run
from pipelines.start import on_this_machine


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RAY_ADDRESS", "http://127.0.0.1:8265", "must be HOST:PORT .*RAY_API_SERVER_ADDRESS"),
        ("RAY_ADDRESS", "https://head:8265", "must be HOST:PORT"),
        ("RAY_ADDRESS", "ray://10.0.0.1:10001", "must be HOST:PORT"),
        ("RAY_ADDRESS", "10.0.0.1", "must be HOST:PORT"),
        ("RAY_ADDRESS", "10.0.0.1:port", "must be HOST:PORT"),
        ("TMPDIR", "/tmp/" + 50 * "x", "TMPDIR is .* 16 bytes too long .*RAY_TMPDIR"),
        ("TMPDIR", "/tmp/" + 20 * "é", "TMPDIR is .* 6 bytes too long"),
        ("RAY_TMPDIR", "/tmp/" + 50 * "x", "RAY_TMPDIR is .* too long"),
        ("TMPDIR", "/proc/none", "TMPDIR is /proc/none: Ray cannot write there"),
    ],
)
def test_setting_that_ray_cannot_use_is_named_at_the_start_and_by_the_dry_run(
    name, value, message, monkeypatch
):
    monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=message):
        on_this_machine(Run())
    [problem] = [each for each in preflight(Run()).missing if each.startswith(name)]
    with pytest.raises(RunError) as caught:
        check_ray_settings()
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAY_ADDRESS", "auto"),
        ("RAY_ADDRESS", "10.0.0.1:6379"),
        ("RAY_ADDRESS", "head-1.example:6379"),
        ("RAY_ADDRESS", "[::1]:6379"),
        ("TMPDIR", "/tmp"),
    ],
)
def test_setting_that_ray_can_use_is_accepted(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    check_ray_settings()


def test_short_ray_tmpdir_remedies_a_long_tmpdir(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp/" + 50 * "x")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_ray_settings()


def test_home_folder_that_cannot_be_written_is_named_where_images_are_staged(monkeypatch):
    monkeypatch.setenv("HOME", "/proc/none")
    with pytest.raises(RunError, match=r"cluster.cache_dir is ~/.cache/ranet: cannot write .*HOME"):
        check_cache_folder("cluster.cache_dir", "~/.cache/ranet")
    on_this_machine(Run())  # nothing is cached


@pytest.mark.parametrize(
    ("no_proxy", "is_named"), [(None, True), ("10.0.0.1", True), ("localhost,127.0.0.1", False)]
)
def test_proxy_without_an_exception_is_named(no_proxy, is_named, monkeypatch):
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://user:secret@proxy:3128")
    if no_proxy is not None:
        monkeypatch.setenv("no_proxy", no_proxy)
    remedy = proxy_remedy("http://127.0.0.1:5000")
    assert ("add 127.0.0.1 to NO_PROXY" in remedy) == is_named
    assert "secret" not in remedy
