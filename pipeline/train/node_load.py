"""How busy the nodes of a run are, in its metrics: every node, not only that of the first rank."""

import platform
import time
from dataclasses import dataclass

import psutil
import torch

from pipeline.world import World

SECONDS_BETWEEN_SAMPLES = 15.0


@dataclass(frozen=True)
class _Sample:
    """Of one rank: numbers of its node, and of its own device."""

    node: str
    numbers: dict[str, float]
    device: int | None
    device_numbers: dict[str, float]


class NodeLoad:
    """Samples of all ranks' nodes, now and then. Rates are over the time since the last sample."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asked = time.monotonic()
        self._network = psutil.net_io_counters()
        psutil.cpu_percent()  # its first answer means nothing

    def due(self) -> bool:
        """Whether all ranks are to sample; the first one says so."""
        passed = time.monotonic() - self._asked
        return self._world.rank == 0 and passed >= SECONDS_BETWEEN_SAMPLES

    def sample(self) -> dict[str, float]:
        """Every node's numbers as ``node-0/cpu_percent`` and so on; all ranks call alike.

        Nodes are numbered in the order of their first ranks. Megabytes are 10^6 bytes.
        """
        found: dict[str, float] = {}
        nodes: dict[str, int] = {}
        for sample in self._world.gather(self._own()):
            if sample.node not in nodes:
                nodes[sample.node] = len(nodes)
                found |= _named(f"node-{nodes[sample.node]}", sample.numbers)
            device = f"node-{nodes[sample.node]}/gpu-{sample.device}"
            found |= _named(device, sample.device_numbers)
        return found

    def _own(self) -> _Sample:
        now, network = time.monotonic(), psutil.net_io_counters()
        passed, before = max(now - self._asked, 1e-9), self._network
        self._asked, self._network = now, network
        numbers = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_percent": psutil.virtual_memory().percent,
            "received_megabytes_per_second": (network.bytes_recv - before.bytes_recv)
            / passed
            / 1e6,
            "sent_megabytes_per_second": (network.bytes_sent - before.bytes_sent) / passed / 1e6,
        }
        device = self._world.device
        if device.type != "cuda":
            return _Sample(platform.node(), numbers, None, {})
        free, total = torch.cuda.mem_get_info(device)
        used = {"memory_percent": 100 * (1 - free / total)}
        return _Sample(platform.node(), numbers, device.index, used)


def _named(prefix: str, numbers: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": round(value, 2) for name, value in numbers.items()}
