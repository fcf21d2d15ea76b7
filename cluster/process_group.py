"""The process group of Ray's workers, on the network by which Ray knows their nodes.

gloo listens where the node's own name leads. On many machines that is loopback, on others a network
that the other nodes do not see; the address that Ray knows a node by is one that they reach. NCCL
looks for networks itself and is left alone.
"""

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

_GLOO = "GLOO_SOCKET_IFNAME"


class NodeTorchConfig(TorchConfig):
    """Ray's TorchConfig, with gloo on the interface of the node's address."""

    @property
    def backend_cls(self) -> type:
        """See BackendConfig.backend_cls."""
        return _NodeBackend


class _NodeBackend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray gives it no public name
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(lead_gloo)
        super().on_start(worker_group, backend_config)


def lead_gloo() -> None:
    """Have gloo use the interface of this node's address, unless the user has said which."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault(_GLOO, interface)


def interface_of(address: str) -> str | None:
    """The name of the interface that has the address; None where none of this machine has."""
    names: dict[str, str] = {
        one.address: name for name, held in psutil.net_if_addrs().items() for one in held
    }
    return names.get(address)
