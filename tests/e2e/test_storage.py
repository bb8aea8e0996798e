"""The file system of the checkpoints, on a server that goes away and comes back."""

import pickle
import time
from threading import Thread

import pytest

from cluster import storage
from cluster.storage import PatientS3FileSystem, open_storage

pytestmark = pytest.mark.e2e


def test_a_folder_and_an_address_with_options_are_left_to_ray():
    for place in ("/runs", "s3://bucket/runs?region=eu-west-1", "gs://bucket/runs"):
        assert open_storage(place) == (place, None)


def test_a_server_that_restarts_is_waited_for_in_other_processes_too(s3, bucket, monkeypatch):
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
            PatientS3FileSystem("us-east-1").open_output_stream(f"{path}/state").close()

    def restart() -> None:
        time.sleep(8)  # longer than Arrow's own patience
        s3.start()

    Thread(target=restart).start()
    with received.open_output_stream(f"{path}/state") as stream:
        stream.write(b"all")
    with received.open_input_stream(f"{path}/state") as stream:
        assert stream.read() == b"all"
