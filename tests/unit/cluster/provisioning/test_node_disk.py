"""Disk set-up of a node, with stub commands under a pseudo-terminal."""

import os
import pty
import stat
import subprocess

import pytest

STUBS = {
    "sudo": 'shift; exec "$@"',
    # The time limits of the test are shorter.
    "timeout": 'limit=$1; shift; [[ $limit != 180 ]] || limit=1; exec /usr/bin/timeout $limit "$@"',
    "systemctl": '[[ $1 != is-system-running ]] || eval "$BOOT"',
    "mountpoint": '[[ " $MOUNTED " == *" $2 "* ]]',
    "udevadm": "",
    "lsblk": 'case "$*" in *--nodeps*) echo "$DISKS" ;; *) eval "echo \\"\\$${!###*/}\\"" ;; esac',
    # As e2fsprogs: a question on a terminal, unless -F is given.
    "mkfs.ext4": '[[ " $* " == *" -F "* || ! -t 0 ]] || read -p "Proceed anyway? (y,N) " -r',
    "mount": "", "mkdir": "", "install": "",
}  # fmt: skip
"""Shell code of each command. BOOT, MOUNTED, DISKS and one variable per disk describe the node."""

NVME = "/opt/dlami/nvme"
TWO_DISKS = {
    "DISKS": "/dev/nvme0n1 Amazon Elastic Block Store\n"
    "/dev/nvme1n1 Amazon EC2 NVMe Instance Storage\n/dev/nvme2n1 Amazon EC2 NVMe Instance Storage",
    "nvme1n1": "nvme1n1 LVM2_member",
    "nvme2n1": "nvme2n1",
}
"""The first local disk belongs to a volume, the second one is unused."""


@pytest.fixture
def set_up(aws, tmp_path):
    """Run the disk set-up; return its status and the commands it ran."""
    folder, log = tmp_path / "stubs", tmp_path / "log"
    folder.mkdir()
    for name, code in STUBS.items():
        stub = folder / name
        stub.write_text(f'#!/bin/bash\necho "{name} $*" >> {log}\n{code}\n')
        stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    script = aws["available_node_types"]["gpu_worker"]["initialization_commands"][0]

    def run(**node):
        environment = {"MOUNTED": "", "BOOT": "true", "DISKS": ""} | node
        environment["PATH"] = f"{folder}:{os.environ['PATH']}"
        controller, terminal = pty.openpty()
        try:
            done = subprocess.run(
                ["bash", "-c", script], env=environment, stdin=terminal, stdout=terminal,
                stderr=terminal, start_new_session=True, timeout=20, check=False,
            )  # fmt: skip
        finally:
            os.close(terminal)
            os.close(controller)
        return done.returncode, log.read_text().splitlines()

    return run


def test_disk_mounted_by_the_image_is_not_formatted(set_up):
    status, commands = set_up(MOUNTED=NVME, **TWO_DISKS)
    assert status == 0
    assert not [line for line in commands if line.startswith("mkfs")]
    assert f"install --directory --owner=1000 --group=1000 {NVME}/ranet" in commands


def test_unused_disk_is_formatted_without_a_question(set_up):
    status, commands = set_up(**TWO_DISKS)
    assert status == 0
    assert [line for line in commands if line.startswith("mkfs")] == [
        "mkfs.ext4 -F -q /dev/nvme2n1"
    ]
    assert commands.index("systemctl is-system-running --wait") < commands.index(
        f"mountpoint --quiet {NVME}"
    )
    assert f"mount /dev/nvme2n1 {NVME}" in commands


def test_boot_that_does_not_end_is_not_waited_for(set_up):
    status, commands = set_up(BOOT="sleep 60", **TWO_DISKS)
    assert status == 0
    assert "mkfs.ext4 -F -q /dev/nvme2n1" in commands


@pytest.mark.parametrize("used", ["nvme2n1 ext4", "nvme2n1\nnvme2n1p1", "nvme2n1\nvg-lv ext4"])
def test_node_without_an_unused_disk_fails_and_formats_nothing(set_up, used):
    status, commands = set_up(**TWO_DISKS | {"nvme2n1": used})
    assert status == 1
    assert not [line for line in commands if line.startswith("mkfs")]


def test_folders_of_docker_are_on_the_local_disk_before_it_pulls_the_image(set_up, aws):
    status, commands = set_up(MOUNTED=NVME)
    assert status == 0
    for folder in ("docker", "containerd"):
        bind = commands.index(f"mount --bind {NVME}/{folder} /var/lib/{folder}")
        stop = commands.index("systemctl stop docker.socket docker containerd")
        assert stop < bind < commands.index("systemctl start containerd docker")
    _, login = aws["available_node_types"]["gpu_worker"]["initialization_commands"]
    assert "docker login" in login
    # The container's /tmp is in Docker's folder, unless a variable or volume moves it.
    options = [*aws["docker"]["run_options"], *(
        option
        for node in aws["available_node_types"].values()
        for option in node.get("docker", {}).get("worker_run_options", [])
    )]  # fmt: skip
    assert not [option for option in options if "TMPDIR" in option or ":/tmp" in option]


def test_second_set_up_of_a_node_changes_nothing(set_up):
    status, commands = set_up(MOUNTED=f"{NVME} /var/lib/docker /var/lib/containerd")
    assert status == 0
    assert not [line for line in commands if line.startswith(("mkfs", "mount ", "systemctl stop"))]
