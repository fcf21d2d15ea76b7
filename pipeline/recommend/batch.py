"""Lists for every user of a data set, part by part, on any number of workers.

    OUTPUT/request.json            what is asked for; written first
    OUTPUT/part-00000.parquet ...  each appears whole
    OUTPUT/manifest.json           written last: what makes the lists complete

Who makes a part does not show in it: it follows from the data set and the request alone.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

from pydantic import ValidationError

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.evaluate import Scorer
from pipeline.recommend.lists import Lister, Part, read_part, write_part
from pipeline.recommend.request import Record, Request, part_name
from pipeline.world import World, current_world

RECORD, MANIFEST = "request.json", "manifest.json"
_LEFT_BEHIND = re.compile(r"\..+\.[0-9a-f]{8}\.partial")
_READERS = 8

Progress = Callable[[int, int], None]
"""Told of users done and users in all, by this call."""


@dataclass(frozen=True)
class Summary:
    """What a call did. users: listed now; those of skipped parts, which were there, are not
    counted. stopped: it was asked to stop, and the same call goes on."""

    output: str
    users: int
    seconds: float
    users_per_second: float
    parts: int
    skipped_parts: int
    stopped: bool

    def as_document(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class _Stopped(Exception):
    """The part at hand is given up."""


def recommend(
    request: Request,
    scorer: Scorer,
    world: World | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Write the lists of every user; parts that are there are kept.

    world: the processes that share the work, all of which call this, each with the whole model or
    all with a ``ShardedScorer``; by default the process group of torch.distributed, if there is
    one. They make parts in rounds, one each, so that a failure of one, or a wish to stop, is known
    to all after a part. progress: of all workers, about. Returns the same on all of them, but for
    the seconds.

    Raises LonghaulError, on all workers, where the folder holds the lists of another request (with
    the difference) or other files, a score is not finite, or a member of the data set is damaged.
    """
    began = time.monotonic()
    world = world or current_world()
    found = world.on_rank_zero(lambda: begin(request))
    missing = [number for number in range(request.parts) if number not in found]
    total = sum(len(request.range_of(number)) for number in missing)
    made: dict[int, Part] = {}

    def write(lister: Lister, number: int) -> list[Part]:
        before, here = sum(part.users for part in made.values()), 0

        def told(users: int) -> None:
            nonlocal here
            here += users
            if progress is not None:
                progress(min(before + here * world.world_size, total), total)
            if world.stop_wanted:
                raise _Stopped

        try:
            return [write_part(request, lister, number, told)]
        except _Stopped:
            return []

    def take_turn(lister: Lister, mine: list[int]) -> list[Part]:
        return lister.in_company(lambda: write(lister, mine[0]) if mine else [])

    lister = world.on_every_rank(lambda: Lister(request, scorer)) if missing else None
    stopped = False
    for first in range(0, len(missing), world.world_size):
        assert lister is not None
        mine = missing[first + world.rank : first + world.rank + 1]
        parts = world.on_every_rank(partial(take_turn, lister, mine))
        outcome = world.gather((parts, world.stop_wanted))
        made |= {part.number: part for each, _ in outcome for part in each}
        stopped = any(wanted for _, wanted in outcome)
        if stopped:
            break
    if len(found) + len(made) == request.parts:
        stopped = False
        world.on_rank_zero(lambda: finish(request, [*found.values(), *made.values()]))
    return summary(request, made.values(), len(found), began, stopped)


def begin(request: Request) -> dict[int, Part]:
    """Make the output folder this request's; the parts that are there, by number.

    A manifest goes while parts are missing. Raises LonghaulError as ``recommend``.
    """
    record = request.record()
    url = storage.join(request.output, RECORD)
    names = {n for n in storage.files_below(request.output) if not _LEFT_BEHIND.fullmatch(n)}
    if RECORD in names:
        kept = _read_record(url)
        differences = kept.differences(record)
        if differences:
            raise LonghaulError(
                f"{request.output} holds other lists: {'; '.join(differences)}; name another folder"
            )
    elif names:
        raise LonghaulError(
            f"{request.output} is no folder of recommendations: it holds {min(names)}; "
            "name an empty one"
        )
    else:
        storage.write_json(url, record.model_dump(mode="json"))
    there = [number for number in range(request.parts) if part_name(number) in names]
    with ThreadPoolExecutor(_READERS) as readers:
        read = list(readers.map(lambda number: read_part(request, number), there))
    found = {part.number: part for part in read if part is not None}
    if MANIFEST in names and len(found) < request.parts:
        storage.remove(storage.join(request.output, MANIFEST))
    return found


def finish(request: Request, parts: Sequence[Part]) -> None:
    """Write the manifest of the parts, which are all there, and remove what kills left behind."""
    for name in storage.files_below(request.output):
        if _LEFT_BEHIND.fullmatch(name):
            storage.remove(storage.join(request.output, name))
    record = request.record().model_dump(mode="json")
    ordered = sorted(parts, key=lambda part: part.number)
    counts = {
        "users": sum(part.users for part in parts),
        "items": sum(part.items for part in parts),
        "short": sum(part.short for part in parts),
    }
    document = record | {"counts": counts, "parts": [part.entry() for part in ordered]}
    storage.write_json(storage.join(request.output, MANIFEST), document)


def summary(
    request: Request, made: Iterable[Part], skipped: int, began: float, stopped: bool
) -> Summary:
    """What was done since ``began`` on the monotonic clock."""
    users = sum(part.users for part in made)
    seconds = time.monotonic() - began
    return Summary(
        output=request.output,
        users=users,
        seconds=seconds,
        users_per_second=users / seconds,
        parts=request.parts,
        skipped_parts=skipped,
        stopped=stopped,
    )


def _read_record(url: str) -> Record:
    try:
        return Record.model_validate(storage.read_json(url))
    except ValidationError as error:
        raise LonghaulError(
            f"{url} is no record of recommendations: {json.dumps(str(error))}"
        ) from error
