"""Split marks by hand: both protocols, every way to write a window, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.prepare.options import PrepareOptions
from tests.prepare.oracle import counts, read_back, run


@pytest.mark.parametrize(
    ("length", "marks"),
    [
        (1, (1, 1, 1, 1)),
        (2, (2, 2, 2, 2)),
        (3, (1, 1, 2, 2)),
        (6, (4, 4, 5, 5)),
    ],
)
def test_leave_one_out(length: int, marks: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("".join(f"1 {n}\n" for n in range(length)))
    dataset = run(tmp_path / "log.txt", tmp_path / "out")
    assert read_back(dataset)[1].marks == marks
    assert dataset.train_events.tolist() == [marks[0]]


def by_time(log: str, folder: Path, **options: Any) -> Dataset:
    (folder / "log.txt").write_text(log)
    columns = ["user", "item", "t"]
    return run(
        folder / "log.txt", folder / "out", columns=columns, timestamp="t", split="time", **options
    )


# user 1 has an event in every part, gaps and edges; user 2 ends in training; user 3 begins late.
LOG = """\
1 7 90
1 1 10
1 2 49
1 3 50
1 4 60
1 5 69
1 6 70
1 8 99
2 1 5
2 1 49
3 9 80
3 9 98
"""


@pytest.mark.parametrize(
    "options",
    [
        {"train_end": "50", "validation": "60/70", "test": "80/100"},
        {"validation": "60/70", "gap": "10s", "test": "80/100"},
        {"validation": "10s", "test": "20s", "gap": "10s"},
        {"validation": "60/70", "test": "20s", "train_end": "1970-01-01T00:00:50"},
        {"validation": "1970-01-01T00:01/1970-01-01T01:01:10+01:00", "test": "20s", "gap": "10s"},
    ],
)
def test_windows(options: dict[str, str], tmp_path: Path) -> None:
    dataset = by_time(LOG, tmp_path, **options)
    split = dataset.manifest.split
    assert (split.kind, split.train_end, split.validation, split.test) == (
        "time",
        50,
        (60, 70),
        (80, 100),
    )
    histories = read_back(dataset)
    assert histories[1].items == [1, 2, 3, 4, 5, 6, 7, 8]
    assert histories[1].marks == (2, 3, 5, 6)
    assert histories[2].marks == (2, 2, 2, 2)
    assert histories[3].marks == (0, 0, 0, 0)
    assert dataset.train_events.sum() == 4


def test_events_after_the_test_window_are_dropped_and_counted(tmp_path: Path) -> None:
    dataset = by_time(LOG, tmp_path, train_end="50", validation="60/70", test="70/98")
    assert counts(dataset)["after_test"] == 2
    assert read_back(dataset)[3].items == [9]


def test_durations_count_back_from_what_the_row_filters_keep(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,t,r\n1,1,10,5\n1,2,20,5\n1,3,30,5\n1,4,1000,1\n")
    dataset = run(
        tmp_path / "log.csv",
        tmp_path / "out",
        timestamp="t",
        rating="r",
        min_rating=2,
        split="time",
        validation="10s",
        test="10s",
    )
    split = dataset.manifest.split
    assert (split.train_end, split.validation, split.test) == (11, (11, 21), (21, 31))
    assert read_back(dataset)[1].marks == (1, 1, 2, 2)


def test_durations_follow_the_unit(tmp_path: Path) -> None:
    day = 86_400_000
    log = "".join(f"1 {n} {n * day}\n" for n in range(30))
    dataset = by_time(log, tmp_path, validation="1w", test="2d", gap="30m", timestamp_unit="ms")
    split = dataset.manifest.split
    end = 29 * day + 1
    gap = 30 * 60_000
    assert split.test == (end - 2 * day, end)
    assert split.validation == (end - 9 * day - gap, end - 2 * day - gap)
    assert split.train_end == end - 9 * day - 2 * gap


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"validation": "60/70", "test": "65/100"},
            "split by time: the end of validation (70 s) is not before the start of test (65 s); "
            "the last event is at 99",
        ),
        (
            {"train_end": "61", "validation": "60/70", "test": "80/100"},
            "split by time: the end of training (61 s) is not before the start of validation "
            "(60 s); the last event is at 99",
        ),
        (
            {"validation": "60/60", "test": "80/100"},
            "split by time: the start of validation (60 s) is not before the end of validation "
            "(60 s); the last event is at 99",
        ),
        (
            {"validation": "500ms", "test": "1s"},
            "validation: 500ms is no whole number of s, the unit of the timestamps; "
            "give a longer one, or set timestamp_unit",
        ),
        (
            {"validation": "60/70", "test": "80/1970-01-01T00:01:20.5"},
            "test: '1970-01-01T00:01:20.5' is no whole number of s; the timestamps are in s",
        ),
        (
            {"validation": "60/70", "test": "200/300"},
            "split by time: no event is left in the test window ((200, 300), s); "
            "the events left are from 5 to 99",
        ),
        (
            {"validation": "60/70", "test": "80/100", "train_end": "5"},
            "split by time: no event is left in the training window (before 5, s); "
            "the events left are from 5 to 99",
        ),
    ],
)
def test_refused_windows(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(LonghaulError) as error:
        by_time(LOG, tmp_path, **options)
    assert str(error.value) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "time", "test": "7d", "validation": "7d"}, "needs the column of the times"),
        ({"split": "time", "timestamp": "t", "test": "7d"}, "needs validation"),
        ({"test": "7d"}, "test only works with split: time"),
        ({"split": "time", "timestamp": "t", "test": "7 days", "validation": "1d"}, "'7 days' is"),
        (
            {"split": "time", "timestamp": "t", "test": "0d", "validation": "1d"},
            "'0d' is no window",
        ),
        ({"split": "time", "timestamp": "t", "test": "a/b", "validation": "1d"}, "'a' is neither"),
        ({"gap": "soon"}, "'soon' is no duration"),
        ({"rating": "r"}, "rating and min_rating only work together"),
        ({"min_rating": 3}, "rating and min_rating only work together"),
        ({"keep_actions": ["buy"]}, "keep_actions needs"),
        ({"user": "item"}, "one column is named for two uses"),
        ({"columns": ["user", "x"]}, "column 'item' is not among columns"),
        ({"columns": ["user", "item", "user"]}, "columns holds a name twice"),
        ({"timestamp_unit": "ms"}, "timestamp_unit needs"),
        ({"min_item_events": 0}, "greater than or equal to 1"),
        ({"inputs": []}, "at least 1 item"),
        ({"surprise": 1}, "Extra inputs are not permitted"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PrepareOptions.model_validate({"inputs": ["log.csv"], "output": "out", **options})


def test_every_option_is_documented() -> None:
    for name, field in PrepareOptions.model_fields.items():
        assert field.description, name
