"""The Ray Train adapter: workers on a Ray cluster, or on this machine where there is none.

Checkpoints are longhaul's own and are never registered with Ray, whose registry also blocks on a
folder that retention removed. Ray starts the workers, restarts them after a loss, and tells of a
coming preemption; each restart finds the newest checkpoint by itself.
"""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.ray_group import join, last_line, looking, work_together
from pipeline.config import Recipe, parse_recipe
from pipeline.errors import LonghaulError
from pipeline.progress import Bar
from pipeline.train.progress import Follower
from pipeline.train.run import RunState, read_state, request_stop, write_state
from pipeline.world import World, stop_signals_call

_SECONDS_BETWEEN_POLLS = 2.0  # asking costs a round trip of all workers, 2.7 ms between two


def train_on_ray(recipe: Recipe, bar: Bar | None) -> RunState:
    """Train with ``placement.workers`` Ray workers; how the run stands when they are through.

    Raises LonghaulError where the workers were lost more often than ``placement.max_failures``.
    """
    before = read_state(recipe.run_url)
    with _following(recipe, before, bar):
        _, problem = work_together(
            _worker,
            {"recipe": recipe.model_dump(mode="json")},
            recipe.name,
            recipe.placement,
            around=lambda: _passing_signals_on(recipe),
        )
    stands = read_state(recipe.run_url)
    if stands is None or (problem is not None and stands.state in ("running", "failed")):
        reason = f"Ray gave the run up: {last_line(problem)}"
        if stands is not None:
            failed = stands.model_copy(update={"state": "failed", "reason": reason})
            write_state(recipe.run_url, failed)
        raise LonghaulError(f"run {recipe.name}: {reason}") from problem
    return stands


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
    from pipeline.train.loop import train

    recipe = parse_recipe(config["recipe"], "the submitted recipe")
    world = join(config, _RayWorld)
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
    attempt = before.attempt if before else 0
    follower = Follower(recipe, bar)

    def look() -> None:
        with contextlib.suppress(LonghaulError):  # the store is away; the next look will tell
            stands = read_state(recipe.run_url)
            if stands is not None and stands.attempt > attempt:
                follower.look(stands.attempt)

    with looking(look, 1.0):
        yield
