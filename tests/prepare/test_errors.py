"""Bad Parquet, bad lists of inputs, numbers out of range: one line each, nothing left behind."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LonghaulError
from pipeline.prepare import explain
from pipeline.prepare.inputs import Source
from pipeline.prepare.layout import check_sizes
from tests.prepare.oracle import run, short

TIMES: dict[str, Any] = {"timestamp": "t"}
RATINGS: dict[str, Any] = {"rating": "r", "min_rating": 1}


def failure(path: Path, **options: Any) -> str:
    """The line, with the folder cut from its paths."""
    out = path.parent / ".out"
    with pytest.raises(LonghaulError) as error:
        run(path, out, **options)
    assert not out.exists()
    line = str(error.value)
    assert "\n" not in line
    return line.replace(f"{path.parent}/", "")


@pytest.mark.parametrize(
    ("columns", "options", "line"),
    [
        (
            {"user": pa.array([1, None, 3]), "item": [1, 2, 3]},
            {},
            "a.parquet, row 2: the user id in column 'user' is missing; drop the row or mend it",
        ),
        (
            {"user": [1, 2], "item": ["a", ""]},
            {},
            "a.parquet, row 2: the item id in column 'item' is empty; drop the row or mend it",
        ),
        (
            {"user": [1.0, 2.0], "item": [1, 2]},
            {},
            "a.parquet, row 1: column 'user' has the type double, but user ids are integers or "
            "strings; cast it",
        ),
        (
            {"user": [1], "item": pa.array([b"\xff"], pa.binary()).view(pa.string())},
            {},
            "a.parquet, row 1: column 'item' is not valid UTF-8; convert the file",
        ),
        (
            {"user": [1, 1], "item": [1, 2], "t": [1.0, 2.5]},
            TIMES,
            "a.parquet, row 2: timestamp '2.5' in column 't' is no whole number; "
            "write integers in timestamp_unit",
        ),
        (
            {"user": [1, 1], "item": [1, 2], "t": pa.array([1, None])},
            TIMES,
            "a.parquet, row 2: the timestamp in column 't' is missing; drop the row or mend it",
        ),
        (
            {"user": [1, 1], "item": [1, 2], "t": pa.array([1, 2**63], pa.uint64())},
            TIMES,
            "a.parquet, row 2: timestamp '9223372036854775808' in column 't' does not fit 64 bits",
        ),
        (
            {"user": [1, 1], "item": [1, 2], "t": pa.array([1000, 1500], pa.timestamp("ms"))},
            {**TIMES, "timestamp_unit": "s"},
            "a.parquet, row 2: timestamp '1970-01-01 00:00:01.500' in column 't' is no whole "
            "number of s; set timestamp_unit to a finer one",
        ),
        (
            {"user": [1], "item": [1], "t": [True]},
            TIMES,
            "a.parquet, row 1: timestamp 'True' in column 't' has the type bool; "
            "times are numbers, ISO 8601 texts or datetimes",
        ),
        (
            {"user": [1], "item": [1], "r": [{"a": 1}]},
            RATINGS,
            "a.parquet, row 1: rating '{'a': 1}' in column 'r' is not a number; "
            "drop the row or mend it",
        ),
        (
            {"user": pa.array([], pa.int64()), "item": pa.array([], pa.int64())},
            {},
            "no events in a.parquet; check the columns ['user', 'item']",
        ),
        (
            {"user": [1], "items": [1]},
            {},
            "a.parquet has no column 'item'; it has 'user', 'items'; "
            "did you mean 'items'? name the right one with item",
        ),
        (
            {"user": [1] * 257, "item": [1] * 257, "a": list(map(str, range(257)))},
            {"action": "a"},
            "257 different actions, but at most 256 can be kept; choose some with keep_actions",
        ),
    ],
    ids=short,
)
def test_bad_parquet(
    columns: dict[str, Any], options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert failure(tmp_path / "a.parquet", **options) == line


def test_rows_are_counted_over_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prepare.formats._ROWS", 10)
    monkeypatch.setattr("pipeline.prepare.formats._BLOCK", 64)
    users = [*map(str, range(95)), "", "x"]
    pq.write_table(pa.table({"user": users, "item": range(97)}), tmp_path / "a.parquet")
    assert failure(tmp_path / "a.parquet").startswith("a.parquet, row 96: the user id")
    (tmp_path / "a.csv").write_text("user,item\n\n" + "".join(f"{user},1\n" for user in users))
    assert failure(tmp_path / "a.csv").startswith("a.csv, line 98: the user id")


def test_not_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"user,item\n1,2\n")
    line = failure(tmp_path / "a.parquet")
    assert line.startswith("cannot read a.parquet as parquet: ")
    assert line.endswith("; set format if it is another one")


def test_a_quote_that_swallows_more_than_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.prepare.formats._BLOCK", 64)
    (tmp_path / "a.csv").write_text('user,item\n1,2\n1,"2\n' + "1,2\n" * 100)
    assert failure(tmp_path / "a.csv") == (
        "a.csv, line 3: a quote in this record is not closed or not doubled "
        "(unexpected end of data); mend it"
    )


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        (
            "a.jsonl",
            {"columns": ["user", "item"]},
            "input a.jsonl is jsonl, which names its columns itself; leave columns out",
        ),
        (
            "a.txt",
            TIMES,
            "input a.txt is text, which by default has the columns user and item only, not t; "
            "name all its columns, in order, with columns",
        ),
    ],
)
def test_columns_that_do_not_fit_the_format(
    name: str, options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("1 2\n")
    assert failure(tmp_path / name, **options) == line


def test_truncated_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [1], "item": [2]}), tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[:-20])
    assert failure(tmp_path / "a.parquet").startswith("cannot read a.parquet as parquet: ")


@pytest.mark.parametrize(
    ("inputs", "line"),
    [
        ("none.csv", "input {}/none.csv does not exist"),
        ("none/*.csv", "no file matches the input {}/none/*.csv"),
        ("empty", "input folder {}/empty holds no files"),
        (
            "twice",
            "input {}/twice/a.csv is given twice, so its events would count twice; name it once",
        ),
    ],
)
def test_inputs(inputs: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "_SUCCESS").touch()
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "a.csv").write_text("user,item\n1,2\n")
    entries = [f"{tmp_path}/{inputs}"]
    if inputs == "twice":
        entries.append(f"{tmp_path}/twice/*.csv")
    with pytest.raises(LonghaulError) as error:
        run(entries, tmp_path / "out")
    assert str(error.value) == line.format(tmp_path)


def test_an_empty_file_among_others_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n1,2\n")
    (tmp_path / "b.csv").touch()
    with pytest.raises(LonghaulError, match=r"/b\.csv is empty"):
        run(tmp_path, tmp_path / ".out")


def test_a_file_without_rows_among_others_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n1,2\n")
    (tmp_path / "b.csv").write_text("user,item\n")
    assert run(tmp_path, tmp_path / ".out").manifest.events == 1


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        (
            (2**32, 1, 0),
            "4294967296 items, but item ids are 32-bit (at most 4294967295); raise min_item_events",
        ),
        (
            (1, 2**32, 0),
            "one user has 4294967296 events, but positions are 32-bit (at most 4294967295); "
            "is the user column the right one?",
        ),
    ],
)
def test_numbers_that_outgrow_their_field(sizes: tuple[int, int, int], line: str) -> None:
    check_sizes(2**32 - 1, 2**32 - 1, 256)
    with pytest.raises(LonghaulError) as error:
        check_sizes(*sizes)
    assert str(error.value) == line


def test_a_row_that_cannot_be_found_again_still_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n1,2\n")
    source = Source(f"{tmp_path}/a.csv", "csv", None, 14)
    assert explain.places(source, [0, 7]) == ["line 2", "record 9"]
    assert explain.places(source, [0, 7], near=0) == ["record 2", "record 9"]
