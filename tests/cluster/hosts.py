"""Several hosts on this machine: network namespaces on one bridge, whose cables can be pulled.

Each has an address, a name of its own that leads to its loopback, as many distributions set it, and
a gateway: this machine, on which a test can serve what the hosts are to reach. They see nothing
else.
"""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

# `sh -c _ENTER NAME NAMES COMMAND` takes the host's name and the names it knows, asks no name
# server, and becomes the command.
_ENTER = """
set -e
hostname "$0"
mount --bind "$1" /etc/hosts
mount --bind /dev/null /etc/resolv.conf
shift
exec "$@"
"""


def may_make_hosts() -> bool:
    """Whether this process may make network namespaces and links, and has the commands for it."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    links = "ip link add tried type bridge && ip link add one type veth peer name other"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "--mount", "sh", "-c", links], capture_output=True
    )
    return tried.returncode == 0


class Hosts:
    """Hosts by these names. ``folder`` is for their files; the object is a context manager."""

    def __init__(self, folder: Path, *names: str) -> None:
        self._folder = folder
        mark = os.urandom(2)
        self._mark = f"lh{mark.hex()}"
        # Of the addresses for tests of networks (RFC 2544), which no network uses.
        network = f"198.{18 + mark[0] % 2}.{mark[1]}"
        self.gateway = f"{network}.254"
        self.addresses = {name: f"{network}.{number}" for number, name in enumerate(names, 1)}

    def __enter__(self) -> "Hosts":
        _ip("link", "add", self._mark, "type", "bridge")  # fails where another has the name
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _make(self) -> None:
        _ip("addr", "add", f"{self.gateway}/24", "dev", self._mark)
        _ip("link", "set", self._mark, "up")
        for name, address in self.addresses.items():
            space, cable = self._space(name), self._cable(name)
            _ip("netns", "add", space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", cable, "master", self._mark, "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                _ip("-n", space, "link", "set", device, "up")
            _ip("-n", space, "route", "add", "default", "via", self.gateway)
            self._known(name).write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")

    def _remove(self) -> None:
        for name in self.addresses:
            self.kill(name)
            with contextlib.suppress(subprocess.CalledProcessError):  # it was never made
                _ip("netns", "del", self._space(name))
        _ip("link", "del", self._mark)

    def _space(self, name: str) -> str:
        return f"{self._mark}-{name}"

    def _cable(self, name: str) -> str:
        return f"{self._mark}c{list(self.addresses).index(name)}"

    def _known(self, name: str) -> Path:
        return self._folder / f"{name}.hosts"

    def on(self, name: str, command: list[str]) -> list[str]:
        """The command as it runs on a host."""
        enter = ["ip", "netns", "exec", self._space(name), "unshare", "--uts", "--mount"]
        return [*enter, "sh", "-c", _ENTER, name, str(self._known(name)), *command]

    def processes(self, name: str) -> list[int]:
        """What runs on a host, whoever its parents are."""
        found = subprocess.run(
            ["ip", "netns", "pids", self._space(name)], capture_output=True, text=True
        )
        return [int(pid) for pid in found.stdout.split()]

    def kill(self, name: str) -> None:
        """End all that runs on a host."""
        while found := self.processes(name):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def cut(self, name: str) -> None:
        """Nothing reaches the host any more, and nothing leaves it; nobody is told."""
        _ip("link", "set", self._cable(name), "down")

    def mend(self, name: str) -> None:
        """The host is back."""
        _ip("link", "set", self._cable(name), "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
