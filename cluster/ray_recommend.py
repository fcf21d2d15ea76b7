"""Recommendations on a Ray cluster: Ray Data deals parts to workers that each hold the model.

A lost worker or node takes the part at hand with it, which another makes again to the same bytes.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from cluster.ray_cluster import check_resources, ray_cluster, resources_of_worker, wants_gpus
from pipeline.config import PlacementConfig
from pipeline.errors import LonghaulError
from pipeline.recommend.batch import Progress, Summary, begin, finish, summary
from pipeline.recommend.lists import Lister, Part, write_part
from pipeline.recommend.request import Request
from pipeline.secrets import read_secrets
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.trained import load_checkpoint
from pipeline.world import pick_device, use_threads


def recommend_on_ray(
    request: Request,
    checkpoint: Checkpoint,
    placement: PlacementConfig,
    workers: int | None,
    progress: Progress,
) -> Summary:
    """As ``pipeline.recommend.recommend``, with so many workers of Ray, each a ``placement`` says.

    workers: None for as many as the cluster has room for.
    """
    began = time.monotonic()
    found = begin(request)
    missing = [number for number in range(request.parts) if number not in found]
    total = sum(len(request.range_of(number)) for number in missing)
    made: list[Part] = []
    if missing:
        # Ray prints, as of a lost worker, and what is printed here may be for a program to read.
        with contextlib.redirect_stdout(sys.stderr), ray_cluster() as own:
            for part in _made(request, checkpoint, placement, workers, missing, own):
                made.append(part)
                progress(sum(part.users for part in made), total)
    finish(request, [*found.values(), *made])
    return summary(request, made, len(found), began, stopped=False)


def _made(
    request: Request,
    checkpoint: Checkpoint,
    placement: PlacementConfig,
    workers: int | None,
    missing: list[int],
    own_cluster: bool,
) -> Iterator[Part]:
    """The parts as they become ready. Raises LonghaulError with what ended a worker."""
    import ray

    wanted = placement.model_copy(update={"workers": workers or 1})
    gpu = wants_gpus(wanted)
    each = resources_of_worker(placement, gpu)
    if workers is None:
        have = ray.cluster_resources()
        workers = max(1, min(int(have.get(kind, 0)) // count for kind, count in each.items()))
    workers = min(workers, len(missing))
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
    """One process with the model. What is wrong goes back as a value: what Ray makes of an
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
