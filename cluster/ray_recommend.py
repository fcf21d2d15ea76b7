"""Recommendations on a Ray cluster: a lost worker costs the parts at hand, which are made again.

Where each worker holds the whole model, Ray Data deals parts to them. Where the item table is
sharded they are a group that scores together, each with its rows of the table.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cluster.ray_cluster import (
    check_resources,
    ray_cluster,
    resources_of_worker,
    room_for,
    wants_gpus,
)
from cluster.ray_group import join, last_line, looking, work_together
from pipeline import storage
from pipeline.config import PlacementConfig
from pipeline.errors import LonghaulError
from pipeline.recommend.batch import Progress, Summary, begin, finish, recommend, summary
from pipeline.recommend.lists import Lister, Part, write_part
from pipeline.recommend.request import Request, part_name
from pipeline.secrets import read_secrets
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.trained import has_sharded_table, load_checkpoint, load_checkpoint_together
from pipeline.world import pick_device, use_threads

_SECONDS_BETWEEN_LOOKS = 5.0  # a look lists the output folder


def recommend_on_ray(
    request: Request,
    checkpoint: Checkpoint,
    placement: PlacementConfig,
    workers: int | None,
    progress: Progress,
) -> Summary:
    """As ``pipeline.recommend.recommend``, with so many workers of Ray, each a ``placement`` says.

    workers: None for as many as the cluster has room for. Raises LonghaulError also where Ray lost
    a group of workers more often than ``placement.max_failures``.
    """
    began = time.monotonic()
    found = begin(request)
    missing = [number for number in range(request.parts) if number not in found]
    placement = placement.model_copy(update={"workers": workers or 1})
    make = _made_by_group if has_sharded_table(checkpoint) and workers != 1 else _made_one_by_one
    made: list[Part] = []
    if missing:
        # Ray prints, as of a lost worker, and what is printed here may be for a program to read.
        with contextlib.redirect_stdout(sys.stderr):
            made = make(request, checkpoint, placement, workers is None, missing, progress)
    finish(request, [*found.values(), *made])
    return summary(request, made, len(found), began, stopped=False)


def _made_by_group(
    request: Request,
    checkpoint: Checkpoint,
    placement: PlacementConfig,
    fill: bool,
    missing: Sequence[int],
    progress: Progress,
) -> list[Part]:
    """The parts, when workers that score together have made all of them."""
    users = {part_name(number): len(request.range_of(number)) for number in missing}

    def look() -> None:
        with contextlib.suppress(LonghaulError):  # the store is away; the next look will tell
            there = users.keys() & storage.files_below(request.output)
            progress(sum(users[name] for name in there), sum(users.values()))

    config = {"request": request, "checkpoint": checkpoint}
    with looking(look, _SECONDS_BETWEEN_LOOKS):
        mistake, problem = work_together(_member, config, "recommend", placement, fill)
    if mistake:
        raise LonghaulError(mistake)
    if problem is not None:
        raise LonghaulError(f"Ray gave the lists up: {last_line(problem)}") from problem
    look()
    there = begin(request)
    return [there[number] for number in missing]


def _member(config: dict[str, Any]) -> str:
    """One of the group. What is wrong goes back as a value: Ray would try again what it raises."""
    world = join(config)
    try:
        trained = load_checkpoint_together(config["checkpoint"], world)
        recommend(config["request"], trained.scorer(), world)
    except LonghaulError as error:
        return str(error)
    return ""


def _made_one_by_one(
    request: Request,
    checkpoint: Checkpoint,
    placement: PlacementConfig,
    fill: bool,
    missing: Sequence[int],
    progress: Progress,
) -> list[Part]:
    """The parts, by workers that each hold the whole model."""
    total = sum(len(request.range_of(number)) for number in missing)
    made: list[Part] = []
    with ray_cluster() as own:
        for part in _dealt(request, checkpoint, placement, fill, missing, own):
            made.append(part)
            progress(sum(part.users for part in made), total)
    return made


def _dealt(
    request: Request,
    checkpoint: Checkpoint,
    placement: PlacementConfig,
    fill: bool,
    missing: Sequence[int],
    own_cluster: bool,
) -> Iterator[Part]:
    """The parts as they become ready. Raises LonghaulError with what ended a worker."""
    import ray

    gpu = wants_gpus(placement)
    each = resources_of_worker(placement, gpu)
    workers = min(room_for(each) if fill else placement.most_workers, len(missing))
    check_resources({kind: count * workers for kind, count in each.items()}, own_cluster)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.issue_detectors_config.detectors = []
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    parts = ray.data.from_items(
        [{"part": number} for number in missing], override_num_blocks=len(missing)
    ).map_batches(
        _Worker,
        fn_constructor_args=(request, checkpoint, placement, gpu),
        batch_size=1,
        # A part takes long: none waits behind another while a worker is idle.
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=each["CPU"],
        num_gpus=each.get("GPU", 0),
    )
    for row in parts.iter_rows():
        problem = row.pop("problem")
        if problem:
            raise LonghaulError(problem)
        yield Part(**row)


class _Worker:
    """One process with the whole model. What is wrong goes back as a value: what Ray makes of an
    exception on its way differs, and it would try again what cannot be mended."""

    def __init__(
        self, request: Request, checkpoint: Checkpoint, placement: PlacementConfig, gpu: bool
    ) -> None:
        self._request = request
        self._lister: Lister | None = None
        self._problem = ""
        read_secrets()
        use_threads(placement.threads or 1)
        try:
            device = pick_device("cuda" if gpu else "cpu", 0)
            self._lister = Lister(request, load_checkpoint(checkpoint, device).scorer())
        except LonghaulError as error:
            self._problem = str(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Make the part in the batch."""
        part = Part(int(batch["part"][0]), 0, 0, 0)
        try:
            if self._lister is not None:
                part = write_part(self._request, self._lister, part.number, lambda users: None)
        except LonghaulError as error:
            self._problem = str(error)
        return {name: [value] for name, value in asdict(part).items()} | {
            "problem": [self._problem]
        }
