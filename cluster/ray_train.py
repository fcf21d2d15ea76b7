"""The Ray Train adapter: workers on a Ray cluster, or on this machine where there is none.

Checkpoints are longhaul's own and are never registered with Ray, whose registry can lose an upload
and blocks on a folder that retention removed. Ray starts the workers, restarts them after a loss,
and tells of a coming preemption; each restart finds the newest checkpoint by itself.
"""

import contextlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.ray_cluster import check_resources, ray_cluster, resources_of_worker, wants_gpus
from pipeline.config import Recipe, parse_recipe
from pipeline.errors import LonghaulError
from pipeline.progress import Bar
from pipeline.secrets import read_secrets
from pipeline.train.progress import Follower
from pipeline.train.run import RunState, read_state, request_stop, write_state
from pipeline.world import World, pick_device, stop_signals_call, use_threads

_WAITING = "OMP_WAIT_POLICY"  # which the package pipeline sets
_SECONDS_BETWEEN_POLLS = 2.0  # asking costs a round trip of all workers, 2.7 ms between two


def train_on_ray(recipe: Recipe, bar: Bar | None) -> RunState:
    """Train with ``placement.workers`` Ray workers; how the run stands when they are through.

    Raises LonghaulError where the workers were lost more often than ``placement.max_failures``.
    """
    # Ray looks every 20 seconds which nodes there are. A group that it wants to start before, it
    # takes for one of all nodes, also those just lost, and waits a minute for them.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "25")
    before = read_state(recipe.run_url)
    with _following(recipe, before, bar):
        for left in range(recipe.placement.max_failures, -1, -1):
            # Connecting anew ends what is left of an attempt, whose workers would keep their place.
            # Ray takes the signals when it is connected to, so ours come after.
            with ray_cluster() as own_cluster, _passing_signals_on(recipe):
                problem = _fit(recipe, own_cluster)
            from ray.train import ControllerError

            # Ray tries again where workers are lost that train, but not where some are lost while
            # they start, as with a node that falls silent then.
            if not isinstance(problem, ControllerError) or not left:
                break
            print(f"warning: {_last_line(problem)}; starting workers again", file=sys.stderr)
    stands = read_state(recipe.run_url)
    if stands is None or (problem is not None and stands.state in ("running", "failed")):
        reason = f"Ray gave the run up: {_last_line(problem)}"
        if stands is not None:
            failed = stands.model_copy(update={"state": "failed", "reason": reason})
            write_state(recipe.run_url, failed)
        raise LonghaulError(f"run {recipe.name}: {reason}") from problem
    return stands


def _fit(recipe: Recipe, own_cluster: bool) -> Exception | None:
    """Train with Ray once; what it failed with."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from cluster.process_group import NodeTorchConfig

    placement = recipe.placement
    use_gpu = wants_gpus(placement)
    each = resources_of_worker(placement, use_gpu)
    need = {kind: count * placement.least_workers for kind, count in each.items()}
    check_resources(need, own_cluster)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"recipe": recipe.model_dump(mode="json"), "use_gpu": use_gpu},
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=use_gpu,
            resources_per_worker=each,
        ),
        run_config=RunConfig(
            # A name of its own each time: a known one would make Ray resume by its own registry.
            name=f"{recipe.name}-{uuid.uuid4().hex[:8]}",
            storage_path="/longhaul",
            storage_filesystem=_nowhere(),
            failure_config=FailureConfig(max_failures=placement.max_failures),
            # In force from the start of the process: Ray loads torch before any of our code.
            worker_runtime_env={"env_vars": {_WAITING: os.environ[_WAITING]}},
        ),
        torch_config=NodeTorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
    )
    try:
        trainer.fit()
    except Exception as error:
        return error
    return None


def _last_line(problem: Exception | None) -> str:
    lines = str(problem or "").strip().splitlines()
    return lines[-1] if lines else "no worker started"


def _nowhere() -> Any:
    """A store for Ray, which wants one, in the memory of each process.

    Nothing is registered with Ray, so there is nothing to keep. In the run's bucket its first
    writes would be the only ones that an outage of the bucket is not waited out for.
    """
    import fsspec
    import pyarrow.fs

    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fsspec.filesystem("memory")))


class _RayWorld(World):
    """Asks Ray now and then whether a node is about to be taken away.

    The run then saves and goes on: Ray ends the workers at the deadline and starts others. One
    that left by itself would count as finished.
    """

    _asked = 0.0
    _deadline: int | None = None

    def poll_due(self) -> bool:
        return self.rank == 0 and time.monotonic() - self._asked >= _SECONDS_BETWEEN_POLLS

    def poll(self, step: int) -> None:
        """See World.poll; Ray's answer is the same on all ranks."""
        import ray.train

        self._asked = time.monotonic()
        notice = ray.train.get_preemption_info()
        if notice is not None and notice.deadline_ms != self._deadline:
            self._deadline = notice.deadline_ms
            self.save_wanted = True


def _worker(config: dict[str, Any]) -> None:
    """One training process. A LonghaulError is in state.json by then; a retry would not mend it."""
    import ray.train

    from pipeline.train.loop import train

    read_secrets()
    recipe = parse_recipe(config["recipe"], "the submitted recipe")
    context = ray.train.get_context()
    use_threads(recipe.placement.threads or 1)
    device = pick_device("cuda" if config["use_gpu"] else "cpu", context.get_local_rank())
    world = _RayWorld(context.get_world_rank(), context.get_world_size(), device)
    try:
        train(recipe, world)
    except LonghaulError:
        return


@contextmanager
def _passing_signals_on(recipe: Recipe) -> Iterator[None]:
    """What asks this process to stop asks the workers, who save; asked again, it just leaves."""
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        request_stop(recipe.run_url)

    with stop_signals_call(stop):
        yield


@contextmanager
def _following(recipe: Recipe, before: RunState | None, bar: Bar | None) -> Iterator[None]:
    """Show the progress of the workers, read from the run's own metrics file."""
    if bar is None:
        yield
        return
    ended = threading.Event()

    def follow() -> None:
        attempt = before.attempt if before else 0
        follower = Follower(recipe, bar)
        while not ended.wait(1.0):
            with contextlib.suppress(LonghaulError):  # the store is away; the next look will tell
                stands = read_state(recipe.run_url)
                if stands is not None and stands.attempt > attempt:
                    follower.look(stands.attempt)

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
