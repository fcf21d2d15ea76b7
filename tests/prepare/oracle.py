"""prepare once more, in plain Python: one event at a time, nothing shared with the real one."""

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline import storage
from pipeline.manifest import Dataset, Manifest, open_dataset
from pipeline.prepare import PrepareOptions, prepare

Key = int | str


@dataclass
class Event:
    user: Key
    item: Key
    time: int | None = None
    action: str | None = None
    rating: float | None = None


@dataclass
class History:
    """What a data set says of one user; items and actions by their keys and names."""

    items: list[Key] = field(default_factory=list)
    times: list[int] | None = None
    actions: list[str] | None = None
    marks: tuple[int, ...] = ()


def stable_hash(key: Key) -> int:
    """The hash of docs/formats.md, byte by byte."""
    mask = 2**64 - 1
    if isinstance(key, int):
        value = key & mask
    else:
        value = 0xCBF29CE484222325
        for byte in key.encode():
            value = ((value ^ byte) * 0x100000001B3) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return value ^ (value >> 31)


def sort_key(key: Key) -> Any:
    return key if isinstance(key, int) else key.encode()


def typed(keys: list[str]) -> list[Key]:
    """The rule for text formats: integers if every key is written as one and fits."""

    def canonical(key: str) -> bool:
        digits = key[1:] if key.startswith("-") else key
        if not digits or any(d not in "0123456789" for d in digits):
            return False
        return str(int(key)) == key and -(2**63) <= int(key) < 2**63

    return [int(key) for key in keys] if all(map(canonical, keys)) else list(keys)


def keep_often(events: list[Event], name: str, least: int) -> list[Event]:
    counts = Counter(getattr(event, name) for event in events)
    return [event for event in events if counts[getattr(event, name)] >= least]


def expected(
    events: list[Event], options: PrepareOptions, window: tuple[int, ...] | None = None
) -> tuple[dict[Key, History], dict[str, int]]:
    """Histories by user key and the counts; ``window``: the five edges of a split by time.

    ``events`` are in the order of files and rows.
    """
    counts = {"events_read": len(events)}

    def note(name: str, kept: list[Event]) -> None:
        nonlocal events
        counts[name] = len(events) - len(kept)
        events = kept

    if options.min_rating is not None:
        note("min_rating", [e for e in events if e.rating >= options.min_rating])
    if options.keep_actions is not None:
        note("keep_actions", [e for e in events if e.action in options.keep_actions])
    if window is not None and "/" in str(options.test):
        note("after_test", [e for e in events if e.time < window[4]])
    histories: dict[Key, list[Event]] = {}
    for event in events:
        histories.setdefault(event.user, []).append(event)
    for user, history in histories.items():
        if options.timestamp is not None:
            history = sorted(history, key=lambda e: e.time)  # sorted is stable
        histories[user] = history
    events = [event for history in histories.values() for event in history]
    if options.repeats != "none":
        kept, seen, last = [], set(), None
        for event in events:
            pair = (event.user, event.item)
            if pair not in seen if options.repeats == "all" else pair != last:
                kept.append(event)
            seen.add(pair)
            last = pair
        note("repeats", kept)
    least_item, least_user = options.min_item_events, options.min_user_events
    if options.count_filter == "one_pass":
        if least_item > 1:
            note("min_item_events", keep_often(events, "item", least_item))
        if least_user > 1:
            note("min_user_events", keep_often(events, "user", least_user))
    elif least_item > 1 or least_user > 1:
        core, before = events, -1
        while len(core) != before:
            before = len(core)
            core = keep_often(keep_often(core, "user", least_user), "item", least_item)
        note("k_core", core)

    found: dict[Key, History] = {}
    for event in events:
        history = found.setdefault(event.user, History())
        history.items.append(event.item)
        if options.timestamp is not None:
            history.times = [*(history.times or []), event.time]
        if options.action is not None:
            history.actions = [*(history.actions or []), event.action]
    for history in found.values():
        n = len(history.items)
        if window is not None:
            history.marks = tuple(sum(t < edge for t in history.times) for edge in window[:4])
        else:
            history.marks = (n - 2, n - 2, n - 1, n - 1) if n >= 3 else (n,) * 4
    counts |= {
        "users": len(found),
        "items": len({event.item for event in events}),
        "events": len(events),
    }
    return found, counts


def table(url: str, name: str) -> dict[str, list[Any]]:
    return pq.read_table(storage.join(url, name)).to_pydict()


def read_back(dataset: Dataset) -> dict[Key, History]:
    """Every user's history of a local data set, in the order of shards and members."""
    manifest = dataset.manifest
    keys = table(dataset.url, manifest.items.path)["key"]
    found: dict[Key, History] = {}
    for number in range(len(dataset)):
        member = dataset.read(number)
        for u in range(len(member)):
            start, stop = int(member.offsets[u]), int(member.offsets[u + 1])
            raw = member.users[u]
            user = int(raw) if manifest.user_type == "int64" else bytes(raw).decode()
            assert user not in found, f"user {user} is stored twice"
            history = History([keys[i - 1] for i in member.items[start:stop].tolist()])
            if member.timestamps is not None:
                history.times = member.timestamps[start:stop].tolist()
            if member.actions is not None:
                assert manifest.actions is not None
                history.actions = [manifest.actions[a] for a in member.actions[start:stop]]
            history.marks = tuple(member.splits[u].tolist())
            found[user] = history
    return found


def check_contract(dataset: Dataset, shard_bytes: int = 128 * 2**20) -> None:
    """Everything docs/formats.md promises of a local data set that holds for any input."""
    manifest = dataset.manifest
    histories = read_back(dataset)
    users = list(histories)
    assert users == sorted(users, key=lambda key: (stable_hash(key), sort_key(key)))
    events = sum(len(h.items) for h in histories.values())
    assert (manifest.users, manifest.events) == (len(users), events)
    assert manifest.members == len(dataset)

    # Shards: their number, their bytes, and who lives where.
    one = next(iter(histories.values()))
    width = 4 + 8 * (one.times is not None) + (one.actions is not None)
    assert len(manifest.shards) == max(1, math.ceil(events * width / shard_bytes))
    contents = {}
    for file in [*manifest.shards, manifest.index, manifest.items, *manifest.user_keys]:
        content = (Path(dataset.url) / file.path).read_bytes()
        assert len(content) == file.bytes
        assert hashlib.sha256(content).hexdigest() == file.sha256
        contents[file.path] = content
    names = [file.path for file in manifest.shards]
    members = [dataset.read(number) for number in range(len(dataset))]
    mapped = []
    for shard in range(len(names)):
        homes = dataset.read_users(shard).to_pydict()
        mapped += homes["key"]
        for key, member, position, count in zip(*homes.values(), strict=True):
            assert shard == stable_hash(key) * len(names) >> 64
            member += dataset.first_member(shard)
            assert dataset.shard[member] == names[shard]
            stored = members[member].users[position]
            assert (int(stored) if isinstance(key, int) else bytes(stored).decode()) == key
            assert count == len(histories[key].items)
    assert mapped == users

    # Members lie back to back in the order of the index, and are neither too large nor too few.
    end = 0
    for number, member in enumerate(members):
        if number == 0 or dataset.shard[number] != dataset.shard[number - 1]:
            end = 0
        assert dataset.start[number] == end
        end = dataset.stop[number]
        piece = contents[dataset.shard[number]][dataset.start[number] : end]
        assert hashlib.sha256(piece).hexdigest() == dataset.sha256[number]
        assert len(member) == dataset.users[number]
        assert len(member.items) == dataset.events[number]
        assert member.splits[:, 0].sum() == dataset.train_events[number]
    assert len(dataset) >= min(1000, len(users))

    # Items: ids follow the sorted keys over all events, and their counts.
    items = table(dataset.url, manifest.items.path)
    assert items["item"] == list(range(1, manifest.catalogue_size + 1))
    everything = Counter(item for h in histories.values() for item in h.items)
    trained = Counter(item for h in histories.values() for item in h.items[: h.marks[0]])
    assert items["key"] == sorted(everything, key=sort_key)
    assert items["events"] == [everything[key] for key in items["key"]]
    assert items["train_events"] == [trained[key] for key in items["key"]]
    recent = recent_events(manifest, histories)
    assert items["recent_events"] == [recent[key] for key in items["key"]]


def recent_events(manifest: Manifest, histories: dict[Key, History]) -> Counter[Key]:
    """Training events of the last seven days of training; without times each user's last ten."""
    unit = manifest.timestamp_unit
    if unit is None:
        return Counter(item for h in histories.values() for item in h.items[: h.marks[0]][-10:])
    pairs = [
        (item, time)
        for h in histories.values()
        for item, time in zip(h.items[: h.marks[0]], h.times[: h.marks[0]], strict=True)
    ]
    end = manifest.split.train_end
    if end is None:
        end = 1 + max((time for _, time in pairs), default=0)
    week = 7 * 86_400 * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    return Counter(item for item, time in pairs if time >= end - week)


def short(value: Any) -> str:
    """A name for a parameter of a test: not the content of a file."""
    return value if isinstance(value, str) and len(value) < 30 else "-"


def run(log: Path | str, output: Path, **options: Any) -> Dataset:
    """Prepare ``log`` and open the result."""
    prepare(
        PrepareOptions(
            inputs=log if isinstance(log, list) else [str(log)], output=str(output), **options
        )
    )
    return open_dataset(str(output))


def counts(dataset: Dataset) -> dict[str, int]:
    """The counts as the file has them, in their order."""
    document = json.loads((Path(dataset.url) / "manifest.json").read_text())
    return dict(Manifest.model_validate(document).counts)
