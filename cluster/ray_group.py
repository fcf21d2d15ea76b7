"""Workers of Ray with a process group among them, started together and again after a loss.

Nothing is registered with Ray, whose registry can lose an upload: who starts a group knows by its
own files how far the work is, and the workers of each start go on from there.
"""

import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from cluster.ray_cluster import (
    check_resources,
    ray_cluster,
    resources_of_worker,
    room_for,
    wants_gpus,
)
from pipeline.config import PlacementConfig
from pipeline.secrets import read_secrets
from pipeline.world import World, pick_device, use_threads

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # which the package pipeline sets


def work_together(
    worker: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    name: str,
    placement: PlacementConfig,
    fill: bool = False,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Any, Exception | None]:
    """Have ``worker(config)`` run in ``placement.workers`` at once, each of which calls ``join``.

    fill: in as many as there is room for instead. around: entered anew with each connection to
    Ray. Returns what the first worker returned, and what Ray failed with, as where workers were
    lost more often than ``placement.max_failures``.
    """
    # Ray looks every 20 seconds which nodes there are. A group that it wants to start before, it
    # takes for one of all nodes, also those just lost, and waits a minute for them.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "25")
    told: Any = None
    problem: Exception | None = None
    for left in range(placement.max_failures, -1, -1):
        # Connecting anew ends what is left of an attempt, whose workers would keep their place.
        # Ray takes the signals when it is connected to, so those of ``around`` come after.
        with ray_cluster() as own_cluster, around():
            told, problem = _fit(worker, config, name, placement, fill, own_cluster)
        from ray.train import ControllerError

        # Ray tries again where workers are lost at work, but not where some are lost while they
        # start, as with a node that falls silent then.
        if not isinstance(problem, ControllerError) or not left:
            break
        print(f"warning: {last_line(problem)}; starting workers again", file=sys.stderr)
    return told, problem


def _fit(
    worker: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    name: str,
    placement: PlacementConfig,
    fill: bool,
    own_cluster: bool,
) -> tuple[Any, Exception | None]:
    """One start of Ray's, which may be several of the workers."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from cluster.process_group import NodeTorchConfig

    use_gpu = wants_gpus(placement)
    each = resources_of_worker(placement, use_gpu)
    if fill:
        placement = placement.model_copy(update={"workers": room_for(each)})
    need = {kind: count * placement.least_workers for kind, count in each.items()}
    check_resources(need, own_cluster)
    trainer = TorchTrainer(
        worker,
        train_loop_config=config | {"use_gpu": use_gpu, "threads": placement.threads or 1},
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=use_gpu,
            resources_per_worker=each,
        ),
        run_config=RunConfig(
            # A name of its own each time: a known one would make Ray resume by its own registry.
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path="/longhaul",
            storage_filesystem=_nowhere(),
            failure_config=FailureConfig(max_failures=placement.max_failures),
            # In force from the start of the process: Ray loads torch before any of our code.
            worker_runtime_env={
                "env_vars": {name: os.environ[name] for name in _WAITING if name in os.environ}
            },
        ),
        torch_config=NodeTorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
    )
    try:
        return trainer.fit().return_value, None
    except Exception as error:
        return None, error


def join(config: dict[str, Any], kind: type[World] = World) -> World:
    """This worker among its group."""
    import ray.train

    read_secrets()
    use_threads(config["threads"])
    context = ray.train.get_context()
    device = pick_device("cuda" if config["use_gpu"] else "cpu", context.get_local_rank())
    return kind(context.get_world_rank(), context.get_world_size(), device)


def last_line(problem: Exception | None) -> str:
    """What Ray failed with, in short."""
    lines = str(problem or "").strip().splitlines()
    return lines[-1] if lines else "no worker started"


@contextmanager
def looking(look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call ``look`` every so many seconds, beside the block."""
    ended = threading.Event()

    def keep_looking() -> None:
        while not ended.wait(seconds):
            look()

    thread = threading.Thread(target=keep_looking, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _nowhere() -> Any:
    """A store for Ray, which wants one, in the memory of each process.

    In the run's bucket its first writes would be the only ones that an outage of the bucket is not
    waited out for.
    """
    import fsspec
    import pyarrow.fs

    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("memory")))
