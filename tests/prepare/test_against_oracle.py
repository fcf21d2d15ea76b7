"""prepare against the plain reimplementation, over random logs, options and formats."""

import csv
import gzip
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset, open_dataset
from pipeline.prepare import PrepareOptions, prepare
from tests.prepare.oracle import Event, check_contract, counts, expected, read_back, typed

WORDS = ["a", "b", "é", "z", "10", "007", "-", "日本", "A", "a,b", '"', "q"]
FORMATS = st.sampled_from(["csv", "tsv", "jsonl", "parquet", "csv.gz", "text"])


@st.composite
def logs(draw: st.DrawFn, least: int = 1) -> list[Event]:
    """Events with ids as text; many share a user, an item or a time."""
    # Drawn by a seeded generator: hypothesis on its own prefers logs of a few equal rows.
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.integers(least, 150))

    def ids() -> list[str]:
        known = [str(n) for n in range(-3, 9)] if draw(st.booleans()) else WORDS
        known = known[: draw(st.integers(1, 12))]
        return [known[int(len(known) * rng.random() ** 2)] for _ in range(rows)]

    users, items = ids(), ids()
    latest = draw(st.sampled_from([30, 30, 3]))
    actions = ["view"] if draw(st.booleans()) else ["view", "buy", "cart"]
    return [
        Event(user, item, rng.randint(0, latest), rng.choice(actions), float(rng.randint(1, 5)))
        for user, item in zip(users, items, strict=True)
    ]


def write(events: list[Event], fmt: str, path: Path) -> None:
    columns = {
        "who": [e.user for e in events],
        "what": [e.item for e in events],
        "when": [e.time for e in events],
        "how": [e.action for e in events],
        "stars": [e.rating for e in events],
    }
    rows = list(zip(*columns.values(), strict=True))
    if fmt == "parquet":
        pq.write_table(pa.table(columns), path, row_group_size=7)
    elif fmt == "jsonl":
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        path.write_text("\n".join(lines) + "\n")
    elif fmt == "text":
        path.write_text("".join("  ".join(map(str, row)) + " \n" for row in rows))
    elif fmt == "tsv":
        lines = ["\t".join(map(str, row)) for row in [tuple(columns), *rows]]
        path.write_text("\n".join(lines) + "\n")
    else:
        opened: Any = gzip.open if fmt == "csv.gz" else open
        with opened(path, "wt", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([tuple(columns), *rows])


@st.composite
def option_sets(draw: st.DrawFn, most: int, kinds: list[str]) -> dict[str, Any]:
    """``most``: the largest minimum count. ``kinds``: of split, ``none`` without times."""
    least = st.sampled_from([1, 1, 2, most])
    options: dict[str, Any] = {
        "repeats": draw(st.sampled_from(["none", "consecutive", "all"])),
        "min_item_events": draw(least),
        "min_user_events": draw(least),
        "count_filter": draw(st.sampled_from(["one_pass", "k_core"])),
        "shard_bytes": draw(st.sampled_from([150, 600, 2**20])),
    }
    if draw(st.booleans()):
        options |= {"rating": "stars", "min_rating": draw(st.integers(1, 4))}
    if draw(st.booleans()):
        options["action"] = "how"
        if draw(st.booleans()):
            options["keep_actions"] = ["view"]
    kind = draw(st.sampled_from(kinds))
    if kind != "none":
        options["timestamp"] = "when"
    if kind == "durations":
        options |= {"split": "time", "validation": "6s", "test": "5s", "gap": "2s"}
    elif kind == "times":
        edges = sorted(draw(st.permutations(range(3, 28)))[:5])
        options |= {
            "split": "time",
            "train_end": str(edges[0]),
            "validation": f"{edges[1]}/{edges[2]}",
            "test": f"{edges[3]}/{edges[4]}",
        }
    return options


def windows(events: list[Event], options: PrepareOptions) -> tuple[int, ...] | None:
    """Train end, validation and test of a time split, by hand."""
    if options.split == "leave_one_out":
        return None
    if options.train_end is not None:
        assert options.validation is not None
        assert options.test is not None
        edges = [options.train_end, *options.validation.split("/"), *options.test.split("/")]
        return tuple(map(int, edges))
    kept = [
        e
        for e in events
        if (options.min_rating is None or e.rating >= options.min_rating)
        and (options.keep_actions is None or e.action in options.keep_actions)
    ]
    end = max((e.time for e in kept), default=0) + 1
    return (end - 15, end - 13, end - 7, end - 5, end)


SLOW = settings(deadline=None, suppress_health_check=list(HealthCheck))
CUT = st.integers(0, 150)


@settings(SLOW, max_examples=150)
@given(events=logs(), fmt=FORMATS, options=option_sets(4, ["none", "leave_one_out"]), cut=CUT)
def test_filters_and_leave_one_out(
    events: list[Event], fmt: str, options: dict[str, Any], cut: int
) -> None:
    compare(events, fmt, options, cut)


@settings(SLOW, max_examples=100)
@given(events=logs(least=60), fmt=FORMATS, options=option_sets(2, ["durations", "times"]), cut=CUT)
def test_split_by_time(events: list[Event], fmt: str, options: dict[str, Any], cut: int) -> None:
    compare(events, fmt, options, cut)


def compare(events: list[Event], fmt: str, given_options: dict[str, Any], cut: int) -> None:
    """Prepare ``events`` from two files, cut at ``cut``, and check all that is written."""
    if fmt == "text":
        given_options = {**given_options, "columns": ["who", "what", "when", "how", "stars"]}
    with tempfile.TemporaryDirectory() as folder:
        suffix = "txt" if fmt == "text" else fmt
        files = []
        # Two files, in the order given, one perhaps empty of events.
        for name, part in (("z", events[:cut]), ("a", events[cut:])):
            if part:
                files.append(f"{folder}/{name}.{suffix}")
                write(part, fmt, Path(files[-1]))
        options = PrepareOptions(
            inputs=files, output=f"{folder}/out", user="who", item="what", **given_options
        )
        typed_format = fmt in ("parquet", "jsonl")  # all ids were written as strings there
        users = [e.user for e in events] if typed_format else typed([e.user for e in events])
        items = [e.item for e in events] if typed_format else typed([e.item for e in events])
        keyed = [
            Event(u, i, e.time, e.action, e.rating)
            for e, u, i in zip(events, users, items, strict=True)
        ]
        window = windows(keyed, options)
        histories, removed = expected(keyed, options, window)
        rated = removed["events_read"] - removed.get("min_rating", 0)
        if options.keep_actions and rated and not any(e.action == "view" for e in events):
            with pytest.raises(LonghaulError, match="keep_actions names 'view'"):
                prepare(options)
            return
        if not histories:
            with pytest.raises(LonghaulError, match="no events left"):
                prepare(options)
            return
        if window is not None and not all(parts(histories)):
            with pytest.raises(LonghaulError, match="no event is left in the"):
                prepare(options)
            return
        manifest = prepare(options)
        dataset = open_dataset(f"{folder}/out")
        assert read_back(dataset) == histories
        assert counts(dataset) == removed
        assert list(counts(dataset)) == list(removed)
        assert dataset.manifest == manifest
        check_contract(dataset, options.shard_bytes)
        check_split(dataset, window)


def parts(histories: dict[Any, Any]) -> tuple[int, int, int]:
    """Events of training, validation and test."""
    marks = [(*h.marks, len(h.items)) for h in histories.values()]
    return (
        sum(m[0] for m in marks),
        sum(m[2] - m[1] for m in marks),
        sum(m[4] - m[3] for m in marks),
    )


def check_split(dataset: Dataset, window: tuple[int, ...] | None) -> None:
    split = dataset.manifest.split
    if window is None:
        assert (split.kind, split.train_end, split.validation, split.test) == (
            "leave_one_out",
            None,
            None,
            None,
        )
    else:
        assert split.kind == "time"
        assert split.train_end == window[0]
        assert split.validation == window[1:3]
        assert split.test == window[3:5]
