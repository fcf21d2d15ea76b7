"""A Ray cluster of one node on each of several hosts, and what its head knows of them."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cluster.hosts import Hosts
from tests.cluster.ray_nodes import RayNodes

# The head finds a node dead that does not answer so many checks. Ray's own settings take more than
# a minute.
_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
# Told by the head, among Ray's own words: every node that joins or is found dead, and when.
_WATCH = """
import os, ray, time
ray.init(os.environ["RAY_ADDRESS"], logging_level="ERROR", log_to_driver=False)
alive = set()
while True:
    now = {(node["NodeName"], node["NodeID"]) for node in ray.nodes() if node["Alive"]}
    for name, _ in now - alive:
        print("NODE", name, "joined", time.time(), flush=True)
    for name, _ in alive - now:
        print("NODE", name, "dead", time.time(), flush=True)
    alive = now
    time.sleep(0.2)
"""


class RayHosts(RayNodes):
    """A head without room for workers on the host ``head``, and nodes with room for one on others.

    The hosts share no folder for Ray's files. The object is a context manager.
    """

    def __init__(self, hosts: Hosts, *nodes: str) -> None:
        self.hosts = hosts
        self._folder = tempfile.mkdtemp(prefix="lh-")  # sockets need a short path
        self._events = Path(self._folder, "events")
        super().__init__(port=6379, ip=hosts.addresses["head"], env=_CHECKS)
        with self._events.open("w") as events:
            self._watch = subprocess.Popen(
                self.on("head", [sys.executable, "-c", _WATCH]), env=self.env, stdout=events
            )
        for name in nodes:
            self.add(name)

    def __enter__(self) -> "RayHosts":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _place(self, name: str) -> list[str]:
        address = self.hosts.addresses[name]
        return [f"--node-ip-address={address}", f"--temp-dir={self._folder}/{name}"]

    def on(self, name: str, command: list[str]) -> list[str]:
        """See RayNodes.on."""
        return self.hosts.on(name, command)

    def add(self, name: str) -> None:
        """The node on a host joins, for the first time or again after it has ended."""
        if name in self._nodes:
            self._nodes.pop(name).wait()
        super().add(name)

    def stop(self) -> None:
        """End all that runs on the hosts."""
        for name in self.hosts.addresses:
            self.hosts.kill(name)
        for process in (self._watch, *self._nodes.values()):
            process.wait()
        shutil.rmtree(self._folder)

    def found_dead(self, name: str, since: float) -> float | None:
        """When the head has found the node on a host dead, after ``since``; None: it has not."""
        dead = f"NODE {name} dead "
        told = [line for line in self._events.read_text().splitlines() if line.startswith(dead)]
        times = [float(line.removeprefix(dead)) for line in told]
        return next((when for when in times if when > since), None)
