"""Heartbeats of the workers."""

import math
import subprocess
import sys
import time
from typing import Any

import pytest
import ray
from ray.actor import exit_actor
from ray.exceptions import RayActorError

from cluster.config import ClusterConfig
from cluster.execution.connection import connected
from cluster.execution.heartbeat import HeartbeatActor, Heartbeats
from cluster.local.processes import ray_folder
from tests.support.training import WORKER_NICENESS


def test_status_reports_the_last_heartbeat_of_any_run_and_of_one_run():
    actor = HeartbeatActor()
    assert actor.status("a").num_workers == 0
    actor.beat("b", 2)
    status = actor.status("a")
    assert status.seconds_since_any < 1
    assert status.seconds_since_own == math.inf
    assert actor.status("b").num_workers == 2


def test_process_of_the_actor_imports_neither_torch_nor_ray_train():
    code = "import sys, cluster.execution.heartbeat; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert "ray" in modules.split()
    assert not {"torch", "ray.train", "mlflow"} & set(modules.split())


@pytest.fixture(scope="module")
def local_ray():
    with pytest.MonkeyPatch.context() as environment, ray_folder() as folder:
        environment.setenv("RAY_TMPDIR", folder)
        environment.delenv("RAY_ADDRESS", raising=False)
        environment.setenv(WORKER_NICENESS, "0")
        with connected(ClusterConfig(num_workers=1)):
            yield


class Driver:
    """Driver of a run, which starts the heartbeats."""

    def start(self) -> Heartbeats:
        self.heartbeats = Heartbeats.start()
        return self.heartbeats


class Controller:
    """Controller of a run, as far as heartbeats need one."""

    def __init__(self, heartbeats: Heartbeats) -> None:
        self._heartbeats = heartbeats

    def register(self) -> None:
        self._heartbeats.register_controller("run")
        self._heartbeats.status("run")  # calls of one process arrive in order

    def abort(self) -> None:
        exit_actor()


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("local_ray")
def test_heartbeats_and_controllers_of_other_processes_are_registered():
    heartbeats = Heartbeats.start()
    assert heartbeats.status("run").num_workers == 0
    send: Any = ray.remote(Heartbeats.beat)
    ray.get(send.remote(heartbeats, "run", 3))
    wait_until(lambda: heartbeats.status("run").num_workers == 3)
    assert heartbeats.status("run").seconds_since_own < 10
    heartbeats.abort("run")  # no controller yet

    controller: Any = ray.remote(Controller).options(num_cpus=0).remote(heartbeats)
    ray.get(controller.register.remote())
    heartbeats.abort("run")
    with pytest.raises(RayActorError):
        ray.get(controller.register.remote())


@pytest.mark.usefixtures("local_ray")
def test_heartbeats_end_with_their_driver():
    driver: Any = ray.remote(Driver).options(num_cpus=0).remote()
    heartbeats: Any = ray.get(driver.start.remote())
    assert heartbeats.is_driver_alive()
    ray.kill(driver)
    wait_until(lambda: not heartbeats.is_driver_alive())
