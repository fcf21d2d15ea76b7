"""A Ray cluster of several nodes on this machine, whose nodes can be lost and drained."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import psutil

from tests.train.runs import environment

RAY = str(Path(sys.executable).parent / "ray")


class RayNodes:
    """A head with room for ``head_cpus`` workers, and nodes with room for one each.

    dashboard: the port on which jobs can be submitted; None for a cluster that takes none. ip: of
    the head. env: more of the environment of nodes and clients.
    """

    def __init__(
        self,
        port: int,
        head_cpus: int = 0,
        dashboard: int | None = None,
        ip: str = "127.0.0.1",
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._port = port
        self.address = f"{ip}:{port}"
        self.env = environment(RAY_AUTH_MODE="disabled", RAY_ADDRESS=self.address) | dict(env)
        self.env |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
        self.env |= {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
        for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
            self.env.pop(name, None)  # nodes know nothing of what we want
        self.folder = Path(f"/tmp/longhaul-ray-{os.getpid()}-{port}")  # sockets need a short path
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        head = ["--head", f"--port={port}"]
        if dashboard is None:
            head.append("--include-dashboard=false")
        else:
            head += [f"--dashboard-port={dashboard}"]
            # The default is one for the machine, and other clusters may have it.
            head += [f"--dashboard-agent-listen-port={dashboard + 1}"]
            self.env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        self._start("head", head_cpus, head)
        if dashboard is not None:
            self._wait_for_port(dashboard)

    def _start(self, name: str, cpus: int, where: list[str]) -> None:
        env = {k: v for k, v in self.env.items() if k != "RAY_ADDRESS"}
        command = [RAY, "start", *where, *self._place(name), "--block", f"--num-cpus={cpus}"]
        command += ["--disable-usage-stats", f"--node-name={name}"]
        with open(self._log(name), "wb") as log:
            self._nodes[name] = subprocess.Popen(
                self.on(name, command), env=env, stdout=log, stderr=log, start_new_session=True
            )
        self._wait_for(name)

    def _place(self, name: str) -> list[str]:
        """Options that say where a node is; the others take over the head's folder."""
        return [f"--temp-dir={self.folder}"] if name == "head" else []

    def on(self, name: str, command: list[str]) -> list[str]:
        """The command as it runs where the node is."""
        return command

    def _wait_for(self, name: str) -> None:
        """Return when the cluster lists the node as alive."""
        while name not in self.ids():
            said = self._log(name).read_text(errors="replace")
            assert self._nodes[name].poll() is None, f"node {name} ended: {said[-2000:]}"

    def _log(self, name: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}-{name}.log")

    def _wait_for_port(self, port: int) -> None:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            assert self._nodes["head"].poll() is None, "the head ended"

    def ids(self) -> dict[str, str]:
        """The ids of the nodes that are alive, by name."""
        script = (
            "import os, ray; ray.init(os.environ['RAY_ADDRESS'], logging_level='ERROR')\n"
            "for n in ray.nodes():\n"
            "    if n['Alive']: print('NODE', n['NodeName'], n['NodeID'])\n"
        )
        said = subprocess.run(
            self.on("head", [sys.executable, "-c", script]),
            env=self.env,
            capture_output=True,
            text=True,
        )
        lines = [line.split() for line in said.stdout.splitlines() if line.startswith("NODE")]
        return {name: node for _, name, node in lines}

    def add(self, name: str) -> None:
        """A node with room for one worker joins."""
        self._start(name, 1, [f"--address={self.address}"])

    def lose(self, name: str) -> None:
        """The node is gone at once, with all that ran on it."""
        node = self._nodes.pop(name)
        with contextlib.suppress(psutil.Error):
            parent = psutil.Process(node.pid)
            for process in [parent, *parent.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
        node.wait()

    def workers(self) -> list[psutil.Process]:
        """The training processes on these nodes."""
        return [worker for node in self._nodes.values() for worker in workers_below(node.pid)]

    def drain(self, name: str, seconds: int) -> None:
        """The node is to be taken away in so many seconds, and is told."""
        drain = [RAY, "drain-node", f"--address={self.address}", f"--node-id={self.ids()[name]}"]
        drain += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"]
        drain += [f"--deadline-remaining-seconds={seconds}"]
        subprocess.run(drain, check=True, env=self.env, capture_output=True)

    def stop(self) -> None:
        """End all nodes."""
        for name in list(self._nodes)[::-1]:
            self.lose(name)


def workers_below(pid: int) -> list[psutil.Process]:
    """The training processes of Ray among the descendants of a process, the oldest first."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)
