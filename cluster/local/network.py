"""Network of a local cluster: namespaces on a bridge, subnets and ports."""

import contextlib
import ipaddress
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from cluster.errors import RanetError

LOOPBACK = "127.77.0.0/24"
"""Subnet of members that are plain processes."""


class ClusterError(RanetError):
    """Failed request to the local cluster; the message gives the reason."""


@dataclass(frozen=True)
class Network:
    """Network namespaces of the members of one cluster, connected by a bridge."""

    token: str
    """Part of the names of all interfaces and namespaces."""
    subnet: str
    addresses: Mapping[str, str]
    """IP address of every member."""
    scratch: Path
    """Folder for the members' `hosts` and `resolv.conf`."""

    @property
    def bridge(self) -> str:
        """Name of the bridge."""
        return f"rn{self.token}"

    def namespace(self, member: str) -> str:
        """Return the name of a member's network namespace."""
        return f"rn{self.token}-{member}"

    def create(self) -> None:
        """Create the bridge and one network namespace per member."""
        network = ipaddress.ip_network(self.subnet)
        names = [
            f"{prefix}{address} {member}"
            for member, address in self.addresses.items()
            for prefix in ("", "::ffff:")
        ]
        (self.scratch / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        # No name server is reachable, and a query to one would take many seconds to fail.
        (self.scratch / "resolv.conf").write_text("")
        run_ip("link", "add", self.bridge, "type", "bridge")
        run_ip("address", "add", f"{network[1]}/{network.prefixlen}", "dev", self.bridge)
        run_ip("link", "set", self.bridge, "up")
        for k, (member, address) in enumerate(self.addresses.items()):
            space, link = self.namespace(member), f"rn{self.token}-{k}"
            # Other names on other nodes, as on machines of several types.
            interface = f"eth-{member}"
            run_ip("netns", "add", space)
            run_ip("link", "add", link, "type", "veth", "peer", "name", interface, "netns", space)
            run_ip("link", "set", link, "master", self.bridge, "up")
            run_ip(
                "-n", space, "address", "add", f"{address}/{network.prefixlen}", "dev", interface
            )
            for each in ("lo", interface):
                run_ip("-n", space, "link", "set", each, "up")
            # The route leads nowhere, but programs find their own IP address through the route.
            run_ip("-n", space, "route", "add", "default", "via", str(network[1]))

    def remove(self) -> None:
        """Delete the namespaces and the bridge, as far as they exist."""
        existing = {space["name"] for space in ip_json("netns", "list")}
        for space in existing & {self.namespace(member) for member in self.addresses}:
            run_ip("netns", "delete", space)
        if any(link["ifname"] == self.bridge for link in ip_json("link", "show")):
            run_ip("link", "delete", self.bridge)

    def isolate(self, member: str, command: list[str]) -> list[str]:
        """Return the command that runs `command` in the namespaces of a member."""
        return [
            "ip", "netns", "exec", self.namespace(member),
            "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc",
            "bash", "-euc",
            # bash stays as process 1 of the namespace, to reap orphaned processes.
            'hostname "$1"; '
            'for file in hosts resolv.conf; do mount --bind "$2/$file" "/etc/$file"; done; '
            'shift 2; "$@"; exit',
            "bash", member, str(self.scratch), *command,
        ]  # fmt: skip


def can_isolate() -> bool:
    """Return whether members can get namespaces of their own.

    Namespaces require root, and the programs `ip` and `unshare`.
    """
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    probe = ["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "--mount-proc",
             "ip", "link", "add", "probe", "type", "bridge"]  # fmt: skip
    return subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode == 0


def free_ports(address: str, count: int) -> list[int]:
    """Return distinct ports that no process uses."""
    with contextlib.ExitStack() as stack:  # all are bound at the same time, so that they differ
        probes = [stack.enter_context(socket.create_server((address, 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def network_lock() -> FileLock:
    """Return the lock for the choice and creation of a network."""
    return FileLock("/run/ranet-network.lock", fallback_to_soft=False)  # only root isolates


def free_subnet() -> str:
    """Return a subnet that is unused on this machine.

    The subnet overlaps no IP address and no route of the machine.

    Raises:
        ClusterError: every subnet of 10.77.0.0/16 is in use.
    """
    taken = [
        ipaddress.ip_network(f"{address['local']}/{address['prefixlen']}", strict=False)
        for link in ip_json("address", "show")
        for address in link["addr_info"]
        if address["family"] == "inet"
    ]
    routes = [route["dst"] for route in ip_json("route", "show", "table", "all")]
    for destination in routes:
        with contextlib.suppress(ValueError):  # such as "default"
            taken.append(ipaddress.ip_network(destination))
    for k in range(256):
        candidate = ipaddress.ip_network(f"10.77.{k}.0/24")
        if not any(candidate.overlaps(each) for each in taken if each.version == 4):
            return str(candidate)
    raise ClusterError(
        "no subnet of 10.77.0.0/16 is free on this machine: stop other local clusters, "
        "or start without isolation (--no-isolation)"
    )


def run_ip(*arguments: str) -> str:
    """Run the command `ip` and return its output.

    Raises:
        ClusterError: the command failed.
    """
    answer = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ClusterError(f"ip {' '.join(arguments)}: {answer.stderr.strip()}")
    return answer.stdout


def ip_json(*arguments: str) -> list[dict[str, Any]]:
    """Run the command `ip` and return its parsed JSON output."""
    return json.loads(run_ip("-json", *arguments) or "[]")
