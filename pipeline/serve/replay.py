"""States of all users of a data set, and new events on top of them: a server's work, in batch."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.export.bundle import Bundle
from pipeline.manifest import Dataset, open_dataset
from pipeline.serve.keys import ItemKeys, as_list
from pipeline.serve.lists import ListsWriter, writing_lists
from pipeline.serve.model import ServedModel
from pipeline.serve.of_run import array_of, item_keys
from pipeline.serve.slots import Slots
from pipeline.serve.states import (
    Part,
    States,
    StatesManifest,
    StatesWriter,
    UserType,
    homes_of,
    in_order,
    open_states,
    part_count,
    read_part,
    writing_states,
)

Progress = Callable[[int, int], None]
COLUMNS = ("user", "item", "timestamp")


def start_states(
    served: ServedModel,
    dataset: Dataset,
    output: str,
    states: str,
    *,
    k: int,
    seen: bool = False,
    progress: Progress | None = None,
) -> StatesManifest:
    """The lists of all users of a data set, and the states that they were made from.

    A state takes the whole history (of a model with a limit the newest window, where the recipe
    re-encodes): not the newest ``evaluation.max_history`` events.
    """
    check_catalogue(served.keys, dataset)
    manifest = dataset.manifest
    parts = part_count(manifest.users, manifest.events, served.bytes_per_user())
    done = 0
    with writing_states(states, served, manifest.user_type) as kept:
        with writing_lists(output, served, manifest.user_type, k, seen) as lists:
            for users, histories in _by_part(dataset, parts):
                slots = Slots(served)
                of_users = slots.add(len(users))
                lengths = [len(history) for history in histories]
                of_events = np.repeat(of_users, lengths)
                slots.check(of_events, _names(users, lengths))
                slots.take(of_events, np.concatenate([np.empty(0, np.int64), *histories]))
                rows = slots.rows(of_users)
                kept.write(Part(users, rows))
                lists.write(users, rows)
                done += len(users)
                if progress is not None:
                    progress(done, manifest.users)
        return kept.commit()


def data_of_bundle(bundle: Bundle, data: str | None) -> Dataset:
    """The data set to recommend for. LonghaulError where none is named, or ids differ."""
    if data is None:
        raise LonghaulError(f"{bundle.url} is a bundle: name the histories with --data")
    dataset = open_dataset(data)
    check_catalogue(bundle.item_keys(), dataset)
    return dataset


def check_catalogue(keys: ItemKeys, dataset: Dataset) -> None:
    """LonghaulError where an id means another item in the data set than to the model."""
    if item_keys(dataset).hash() != keys.hash():
        raise LonghaulError(
            f"{dataset.url} has another catalogue than the model: its ids mean other items"
        )


def _names(users: np.ndarray, lengths: list[int]) -> list[object]:
    keys = as_list(users)
    return [key for key, length in zip(keys, lengths, strict=True) for _ in range(length)]


def _by_part(dataset: Dataset, parts: int) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Keys and histories of the users of each part in turn: members lie in the order of hashes."""
    kind = np.dtype(np.int64 if dataset.manifest.user_type == "int64" else "S1")
    keys: list[np.ndarray] = [np.empty(0, kind)]
    histories: list[np.ndarray] = []
    current = 0
    for number in range(len(dataset)):
        member = dataset.read(number)
        homes = homes_of(member.users, parts)
        bounds = member.offsets.astype(np.int64)
        items = member.items.astype(np.int64)
        for home in np.unique(homes).tolist():
            while current < home:
                yield np.concatenate(keys), histories
                keys, histories = [np.empty(0, kind)], []
                current += 1
            first, last = np.searchsorted(homes, [home, home + 1])
            keys.append(member.users[first:last])
            histories += [items[bounds[u] : bounds[u + 1]] for u in range(first, last)]
    while current < parts:
        yield np.concatenate(keys), histories
        keys, histories = [np.empty(0, kind)], []
        current += 1


@dataclass(frozen=True, eq=False)
class NewEvents:
    """Events in the order that they are taken in. users: keys ``[E]``. items: ids, i64 ``[E]``.

    unknown: events that were left out because the model does not know their item.
    """

    users: np.ndarray
    items: np.ndarray
    unknown: int


def read_events(
    url: str,
    keys: ItemKeys,
    user_type: UserType,
    columns: tuple[str, ...] = COLUMNS,
    skip_unknown_items: bool = False,
) -> NewEvents:
    """Events of a Parquet file, by time, those of one time as they stand in the file.

    columns: of user, item and time; without the third the order of the file counts.
    LonghaulError for a column that is missing, empty somewhere or of another type than the states'
    users or the model's items, and for an unknown item unless ``skip_unknown_items``.
    """
    with storage.told(url, "read"):
        file = pq.ParquetFile(storage.opened(storage.absolute(url)))
        absent = [name for name in columns if name not in file.schema_arrow.names]
        if absent:
            raise LonghaulError(
                f"{url} has no column {absent[0]!r}, it has {', '.join(file.schema_arrow.names)}: "
                "name user, item and time with --columns (without a time the file's order counts)"
            )
        table = file.read(columns=list(columns))
    for name in columns:
        if table.column(name).null_count:
            raise LonghaulError(f"{url}: column {name!r} has an empty value; drop the row")
    users = _keys(table.column(columns[0]), user_type == "string", url, columns[0], "states' users")
    names = _keys(table.column(columns[1]), keys.strings, url, columns[1], "model's items")
    items = keys.find(names)
    order = np.arange(len(items))
    if len(columns) > 2:
        order = np.argsort(table.column(columns[2]).to_numpy(), kind="stable")
    known = items[order] > 0
    unknown = int(len(items) - known.sum())
    if unknown and not skip_unknown_items:
        first = as_list(names[order][~known][:1])[0]
        raise LonghaulError(
            f"{url}: item {first!r} is not in the catalogue of {len(keys):,} items that the model "
            f"knows ({unknown:,} of {len(items):,} events): --skip-unknown-items leaves them out"
        )
    return NewEvents(users[order][known], items[order][known], unknown)


def _keys(column: pa.ChunkedArray, strings: bool, url: str, name: str, whose: str) -> np.ndarray:
    kind = column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if text != strings or not (text or pa.types.is_integer(kind)):
        wanted = "strings" if strings else "integers"
        raise LonghaulError(f"{url}: column {name!r} is {kind}, but the {whose} are {wanted}")
    return array_of(column)


def apply_events(
    served: ServedModel,
    events: str,
    states: str,
    output: str,
    save_states: str | None = None,
    *,
    k: int,
    seen: bool = False,
    columns: tuple[str, ...] = COLUMNS,
    skip_unknown_items: bool = False,
    progress: Progress | None = None,
) -> tuple[int, NewEvents]:
    """Add new events to states: the lists of the users they touch, and the states of all.

    A user without a state begins with his first event. Returns how many users were touched, and
    the events.
    """
    before = open_states(states, served)
    user_type = before.manifest.user_type
    new = read_events(events, served.keys, user_type, columns, skip_unknown_items)
    homes = homes_of(new.users, len(before.parts))
    by_home = np.argsort(homes, kind="stable")
    bounds = np.searchsorted(homes[by_home], np.arange(len(before.parts) + 1))
    keeping: AbstractContextManager[StatesWriter | None] = nullcontext()
    if save_states is not None:
        keeping = writing_states(save_states, served, user_type)
    with keeping as kept:
        with writing_lists(output, served, user_type, k, seen) as lists:
            _apply(served, before, new, by_home, bounds, lists, kept, progress)
        if kept is not None:
            kept.commit()
    return lists.users, new


def _apply(
    served: ServedModel,
    before: States,
    new: NewEvents,
    by_home: np.ndarray,
    bounds: np.ndarray,
    lists: ListsWriter,
    kept: StatesWriter | None,
    progress: Progress | None,
) -> None:
    cuts = _cuts(served, before, new)
    for number, entry in enumerate(before.parts):
        here = by_home[bounds[number] : bounds[number + 1]]
        if len(here) or (kept is not None and cuts > 1):
            old = read_part(before, entry)
            whole, touched = _with_events(served, old, new.users[here], new.items[here])
            lists.write(touched.users, touched.rows)
            if kept is not None:
                for part in _cut(whole, number, cuts, cuts * len(before.parts)):
                    kept.write(part)
        elif kept is not None:
            kept.copy(before, entry)
        if progress is not None:
            progress(number + 1, len(before.parts))


def _cuts(served: ServedModel, before: States, new: NewEvents) -> int:
    """Into how many parts each part is cut, so that growing states stay in bounded files."""
    users = before.manifest.users + len(np.unique(new.users))
    events = before.manifest.events + len(new.items)
    return max(1, part_count(users, events, served.bytes_per_user()) // len(before.parts))


def _cut(part: Part, number: int, cuts: int, parts: int) -> Iterator[Part]:
    """Part ``number`` of ``parts / cuts`` as ``cuts`` parts of ``parts``."""
    first = number * cuts
    bounds = np.searchsorted(homes_of(part.users, parts), np.arange(first, first + cuts + 1))
    for begin, end in pairwise(bounds.tolist()):
        yield Part(part.users[begin:end], part.rows.between(begin, end))


def _with_events(
    served: ServedModel, part: Part, users: np.ndarray, items: np.ndarray
) -> tuple[Part, Part]:
    """The part after these events, and of it the users they touch."""
    slots = Slots(served)
    of_part = slots.put(part.rows)
    touched, of_event = np.unique(users, return_inverse=True)
    by_key = np.argsort(part.users, kind="stable")
    place = np.searchsorted(part.users[by_key], touched)
    place = np.minimum(place, max(0, len(part.users) - 1))
    known = np.zeros(len(touched), bool)
    if len(part.users):
        known = part.users[by_key][place] == touched
    of_touched = np.empty(len(touched), np.int64)
    of_touched[known] = of_part[by_key[place[known]]]
    of_touched[~known] = slots.add(int((~known).sum()))
    slots.check(of_touched[of_event], as_list(users))
    slots.take(of_touched[of_event], items)
    return (
        _part(
            slots,
            np.concatenate([part.users, touched[~known]]),
            np.concatenate([of_part, of_touched[~known]]),
        ),
        _part(slots, touched, of_touched),
    )


def _part(slots: Slots, users: np.ndarray, of_users: np.ndarray) -> Part:
    order = in_order(users)
    return Part(users[order], slots.rows(of_users[order]))
