"""The Ray cluster around this process, or one of this machine alone; what a worker takes of it."""

import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pipeline.config import PlacementConfig
from pipeline.errors import LonghaulError


def inside_cluster() -> bool:
    """Whether this process was told of a running Ray cluster, as a submitted job is."""
    return "RAY_ADDRESS" in os.environ


@contextmanager
def ray_cluster() -> Iterator[bool]:
    """Connect to Ray while the block runs; whether the cluster is this process's own."""
    # Ray reports its own usage and changes each worker's folder unless told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    own = not inside_cluster()
    if own and "ray" not in sys.modules:  # which reads these when it is loaded
        # Ray's ports are open to the network, and whoever reaches them can run any code.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        yield False
        return
    ray.init(address="local" if own else "auto", log_to_driver=False, logging_level="ERROR")
    try:
        yield own
    finally:
        ray.shutdown()


def wants_gpus(placement: PlacementConfig) -> bool:
    """Whether each worker takes a GPU of the cluster."""
    import ray

    return placement.device == "cuda" or (
        placement.device == "auto"
        and ray.cluster_resources().get("GPU", 0) >= placement.least_workers
    )


def resources_of_worker(placement: PlacementConfig, gpu: bool) -> dict[str, int]:
    """What Ray is to set aside for one worker."""
    return {"CPU": placement.threads or 1} | ({"GPU": 1} if gpu else {})


def room_for(each: Mapping[str, int]) -> int:
    """How many workers find room on the nodes that are there; at least one, which may wait."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, sum(min(int(have.get(kind, 0)) // each[kind] for kind in each) for have in nodes))


def check_resources(need: Mapping[str, int], own_cluster: bool) -> None:
    """Ray waits for resources without a word and without end: say so, or refuse what cannot come.

    Raises LonghaulError where this machine is all there is and ``need`` is more than it has.
    """
    import ray

    have = ray.cluster_resources()
    short = [
        f"{count} {kind}s where there are {have.get(kind, 0):.0f}"
        for kind, count in need.items()
        if count > have.get(kind, 0)
    ]
    if not short:
        return
    told = f"the workers want {' and '.join(short)}"
    if own_cluster:
        raise LonghaulError(f"{told}: lower placement.workers or placement.threads on this machine")
    print(f"warning: {told}; waiting for nodes to join the Ray cluster", file=sys.stderr)
