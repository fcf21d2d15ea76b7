"""Several hosts on this machine: network namespaces on one bridge, whose links can be cut."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def may_make_hosts() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0:
        return False
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return tried.returncode == 0 and Path("/usr/sbin/ip").exists()


class Hosts:
    """``count`` hosts with addresses of their own, which see each other and nothing else."""

    def __init__(self, count: int) -> None:
        self._mark = f"lh{os.getpid() % 10_000}"
        self._network = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.addresses = [f"{self._network}.{number + 1}" for number in range(count)]
        _ip("link", "add", self._mark, "type", "bridge")
        _ip("link", "set", self._mark, "up")
        for number, address in enumerate(self.addresses):
            host, cable = self._host(number), self._cable(number)
            _ip("netns", "add", host)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("link", "set", cable, "master", self._mark, "up")
            _ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", host, "link", "set", device, "up")

    def _host(self, number: int) -> str:
        return f"{self._mark}h{number}"

    def _cable(self, number: int) -> str:
        return f"{self._mark}c{number}"

    def on(self, number: int, command: list[str]) -> list[str]:
        """The command as it runs on a host."""
        return ["ip", "netns", "exec", self._host(number), *command]

    def cut(self, number: int) -> None:
        """Nothing reaches the host any more, and nothing leaves it."""
        _ip("link", "set", self._cable(number), "down")

    def mend(self, number: int) -> None:
        """The host is back."""
        _ip("link", "set", self._cable(number), "up")

    def remove(self) -> None:
        """Take the hosts away; their processes must have ended."""
        for number in range(len(self.addresses)):
            _ip("netns", "del", self._host(number))
        _ip("link", "del", self._mark)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """Hosts for as long as the block runs."""
    made = Hosts(count)
    try:
        yield made
    finally:
        made.remove()
