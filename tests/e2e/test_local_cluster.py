"""Local cluster: killed, paused and restarted members, and a complete clean-up."""

import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier

import boto3
import pytest
import requests

from cluster.local.__main__ import describe
from cluster.local.cluster import LocalCluster, create_cluster
from cluster.local.network import can_isolate
from cluster.local.services import BUCKET
from pipelines.run import read_run
from tests.support.jobs import from_a_page
from tests.support.training import PROJECT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def command(folder, *arguments):
    return [sys.executable, "-m", "cluster.local", "--folder", str(folder), *arguments]


def test_killed_host_is_gone_at_once_and_restarts_as_a_new_node(cluster):
    before = cluster.living_nodes()
    assert before.keys() == {"head", "host1", "host2"}
    cluster.kill("host2")
    assert cluster.processes("host2") == []
    assert cluster.processes("host1")
    cluster.start("host2")
    after = cluster.living_nodes()
    assert after["host1"] == before["host1"]
    assert after["host2"] != before["host2"]


def test_s3_objects_survive_a_kill_and_a_paused_server_does_not_answer(cluster):
    client = cluster.s3()
    client.put_object(Bucket=BUCKET, Key="object", Body=b"content")
    cluster.kill("s3")
    cluster.start("s3")
    assert client.get_object(Bucket=BUCKET, Key="object")["Body"].read() == b"content"
    client.close()
    health = f"{cluster.environment['MLFLOW_TRACKING_URI']}/health"
    cluster.pause("mlflow")
    with pytest.raises(requests.ReadTimeout):
        requests.get(health, timeout=2)
    cluster.resume("mlflow")
    assert requests.get(health, timeout=20).ok


def test_mlflow_accepts_requests_from_its_own_pages_only(cluster):
    server = cluster.environment["MLFLOW_TRACKING_URI"]
    assert from_a_page(server, server) == 200
    assert from_a_page(server, "http://elsewhere.example") == 403


def test_printed_urls_respond_and_printed_command_parses(cluster):
    lines = describe(cluster).replace("\\\n", "").splitlines()
    assert [tuple(line.split()) for line in lines[1:6]] == [
        (name, cluster.address(name)) for name in cluster.members
    ]
    exports = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
    environment = dict(line.split("=", 1) for line in exports)
    token = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    [dashboard] = [line.split()[1] for line in lines if line.startswith("dashboard ")]
    assert dashboard == environment["RAY_API_SERVER_ADDRESS"]
    assert requests.get(f"{dashboard}/api/version", headers=token, timeout=20).ok
    assert requests.get(f"{dashboard}/api/version", timeout=20).status_code == 401
    [mlflow] = [line.split()[1] for line in lines if line.startswith("MLflow ")]
    assert mlflow == environment["MLFLOW_TRACKING_URI"]
    assert requests.get(f"{mlflow}/health", timeout=20).ok
    s3 = boto3.client(
        "s3", endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )  # fmt: skip
    s3.head_bucket(Bucket=BUCKET)
    s3.close()
    [nodes] = [line.partition("NODES=")[2] for line in lines if line.startswith("Prometheus ")]
    assert Path(nodes).is_file()
    [(python, script, dashes, _, training, *arguments)] = [
        shlex.split(line) for line in lines if "submit.py" in line
    ]
    assert (Path(python), dashes) == (Path(sys.executable), "--")
    assert all((PROJECT / path).is_file() for path in (script, training, arguments[1]))
    arguments[1] = str(PROJECT / arguments[1])
    run = read_run(arguments)
    assert run.cluster.storage_path == f"s3://{BUCKET}/runs"
    assert run.cluster.num_workers == (1, cluster.num_hosts)
    assert run.data.prepared_dir == f"{cluster.folder}/data"


@pytest.mark.skipif(not can_isolate(), reason="needs root and network namespaces")
def test_isolated_hosts_have_their_own_addresses(cluster):
    addresses = {cluster.address(name) for name in cluster.members}
    assert len(addresses) == len(cluster.members)
    assert not any(address.startswith("127.") for address in addresses)


@pytest.mark.parametrize("plain", [True, False])
def test_next_cluster_kills_orphaned_members_and_sigterm_leaves_no_process(plain, tmp_path):
    if not plain and not can_isolate():
        pytest.skip("needs root and network namespaces")
    mode = ["--no-isolation"] if plain else []
    up = command(tmp_path, "up", "--hosts", "0", *mode)
    with subprocess.Popen(up, cwd=PROJECT, stderr=subprocess.PIPE) as first:
        first_cluster = wait_for(lambda: running(tmp_path))
        second = subprocess.run(up, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert second.stderr == f"error: a cluster is running from {tmp_path}; stop it first\n"
        first.kill()
    assert first_cluster.processes("head")
    with subprocess.Popen(up, cwd=PROJECT, stderr=subprocess.PIPE, text=True) as third:
        third_cluster = wait_for(
            lambda: (now := running(tmp_path)) and now.token != first_cluster.token and now
        )
        assert first_cluster.processes(*first_cluster.members) == []
        third.send_signal(signal.SIGTERM)
        _, lines = third.communicate(timeout=60)
        assert third.returncode == 0
        assert "killing the members that a previous cluster left" in lines
    assert third_cluster.processes(*third_cluster.members) == []
    assert not (tmp_path / "cluster.json").exists()
    if not plain:
        links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
        assert third_cluster.token not in links
        assert first_cluster.token not in links


@pytest.mark.skipif(not can_isolate(), reason="needs root and network namespaces")
def test_clusters_that_are_created_at_the_same_time_have_different_subnets(tmp_path):
    all_begin = Barrier(4)

    def create(folder):
        folder.mkdir()
        all_begin.wait(10)
        return create_cluster(folder, num_hosts=1, cpus_per_host=1, isolated=True)

    with ThreadPoolExecutor(4) as pool, ExitStack() as stack:
        creating = [pool.submit(create, tmp_path / str(k)) for k in range(4)]
        clusters = [each.result(60) for each in creating]
        for cluster in clusters:
            stack.callback(cluster.close)
    assert len({cluster.subnet for cluster in clusters}) == 4


def running(folder):
    """The cluster of a folder once its head is being started."""
    if not (folder / "cluster.json").exists():
        return None
    cluster = LocalCluster.find(folder)
    return cluster if cluster.processes("head") else None


def wait_for(condition, timeout=60):
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def test_cluster_file_of_another_version_is_rejected_with_the_remedy(tmp_path):
    (tmp_path / "cluster.json").write_text('{"folder": "x", "token": "77ab"}')
    for action in (("up",), ("kill", "host1")):
        done = subprocess.run(
            command(tmp_path, *action), cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"error: {tmp_path}/cluster.json describes a cluster of another")
        assert "'ray_token'" in last
        assert last.endswith("or delete the file if it is no longer running")


def test_unknown_member_or_missing_cluster_is_reported_in_one_sentence(cluster, tmp_path):
    for folder, message in (
        (tmp_path, f"error: no cluster runs from {tmp_path}; start one: make cluster"),
        (cluster.folder, "error: no member host9; there are s3 mlflow head host1 host2"),
    ):
        done = subprocess.run(
            command(folder, "kill", "host9"), cwd=PROJECT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.strip() == message
