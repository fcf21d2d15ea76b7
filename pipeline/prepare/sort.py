"""The second half of the shuffle: one partition becomes a run, its histories in their order.

Item ids depend on the whole log, so a run has codes of its own for its items, and the list of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.errors import LonghaulError
from pipeline.manifest import File, Split
from pipeline.prepare import spill
from pipeline.prepare.card import Traits, traits
from pipeline.prepare.deal import Partition, path_of
from pipeline.prepare.options import PrepareOptions, Unit
from pipeline.prepare.order import by_user_and_time, coded, coded_by_hash, stable_order
from pipeline.prepare.runs import Run, write_run
from pipeline.prepare.tally import Tally, tally
from pipeline.prepare.tasks import Advance


@dataclass
class Sorted:
    """What is known of a partition once it is a run: a tally of it, what filters removed, what the
    times tell, and its files."""

    tally: Tally
    removed: dict[str, int]
    traits: Traits
    files: list[File]


def sort(
    partition: Partition,
    rows: int,
    actions: list[np.ndarray],
    options: PrepareOptions,
    split: Split,
    unit: Unit | None,
    folder: Path,
    output: str,
    advance: Advance,
) -> Sorted:
    """Sort the events dealt to ``partition``, so many ``rows``, and write them as a run to
    ``output``.

    actions: of each task, what its codes of actions are among all, u16. folder: of what was dealt.
    Raises LonghaulError where not all of it is there, or the run cannot be written.
    """
    columns = _gathered(_dealt(partition, actions, folder))
    count = len(columns.get("user", ()))
    if count != rows:
        raise LonghaulError(f"{folder / partition.name} holds {count} events instead of {rows}")
    found = sort_columns(columns, options, split, unit, output)
    advance(rows)
    return found


def sort_columns(
    columns: spill.Columns, options: PrepareOptions, split: Split, unit: Unit | None, output: str
) -> Sorted:
    """Write the events of a partition, as ``run_of`` wants them, as a run to ``output``."""
    run, removed, found = run_of(columns, options, split, unit)
    files = write_run(output, run)
    return Sorted(tally(run.lengths, run.times, run.actions, split), removed, found, files)


def _dealt(
    partition: Partition, actions: list[np.ndarray], folder: Path
) -> Iterator[spill.Columns]:
    for number, codes in enumerate(actions):
        path = path_of(folder, partition, number)
        for columns in spill.blocks(path) if path.exists() else ():
            if "action" in columns:
                columns["action"] = pa.array(codes[columns["action"].to_numpy()])
            yield columns


def run_of(
    columns: spill.Columns, options: PrepareOptions, split: Split, unit: Unit | None
) -> tuple[Run, dict[str, int], Traits]:
    """The run of a partition's events, which come in the order of files and rows.

    Columns: user, item, and time and action (u16) where the log has them.
    """
    removed: dict[str, int] = {}
    times = columns["time"].to_numpy() if "time" in columns else None
    if split.test is not None and "/" in str(options.test):
        assert times is not None
        kept = times < split.test[1]
        removed["after_test"] = len(kept) - int(kept.sum())
        columns = {name: array.filter(pa.array(kept)) for name, array in columns.items()}
        times = times[kept]

    user_keys, users = coded_by_hash(columns.pop("user"))
    item_keys, items = coded(columns.pop("item"))
    rows = by_user_and_time(users, len(user_keys), times)
    users, items = users[rows], items[rows]
    times = None if times is None else times[rows]
    actions = columns.pop("action").to_numpy()[rows] if "action" in columns else None
    found = traits(users, items, times, unit)
    if options.repeats != "none":
        kept = ~repeated(users, items, len(user_keys), options.repeats == "all")
        removed["repeats"] = len(kept) - int(kept.sum())
        users, items = users[kept], items[kept]
        times = None if times is None else times[kept]
        actions = None if actions is None else actions[kept]
    run = Run(
        user_keys=user_keys,
        lengths=np.bincount(users, minlength=len(user_keys)),
        item_keys=item_keys,
        item_events=np.bincount(items, minlength=len(item_keys)),
        items=items,
        times=times,
        actions=actions,
    )
    return run, removed, found


def _gathered(blocks: Iterator[spill.Columns]) -> spill.Columns:
    """All blocks as one."""
    parts: dict[str, list[pa.Array]] = {}
    for columns in blocks:
        for name, array in columns.items():
            parts.setdefault(name, []).append(array)
    return {name: pa.concat_arrays(parts.pop(name)) for name in list(parts)}


def repeated(users: np.ndarray, items: np.ndarray, user_count: int, everywhere: bool) -> np.ndarray:
    """Which ordered events repeat the one before them, or with ``everywhere`` any earlier one of
    their user, bool ``[T]``. users: u32 below ``user_count``. items: u32."""
    found = np.zeros(len(users), bool)
    if not everywhere:
        found[1:] = (users[1:] == users[:-1]) & (items[1:] == items[:-1])
        return found
    rows = stable_order(items, int(items.max(initial=0)) + 1)
    rows = rows[stable_order(users[rows], user_count)]
    again = (users[rows][1:] == users[rows][:-1]) & (items[rows][1:] == items[rows][:-1])
    found[rows[1:][again]] = True
    return found
