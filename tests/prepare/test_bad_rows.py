"""Dirty input: which rows are skipped, what is told of them, and what is refused all the same.

Whether a row is bad is a property of the row: neither blocks nor tasks show.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.prepare import formats
from pipeline.prepare.embedded import Embedded
from tests.prepare.oracle import counts, read_back, run, short
from tests.prepare.test_errors import RATINGS, TIMES, failure

SKIP: dict[str, Any] = {"bad_rows": "skip", "most_bad_rows": 0.9}


def report(output: Path) -> Any:
    return json.loads((output / "bad_rows.json").read_text())


def told(output: Path) -> list[tuple[str, str | None, str | None, str]]:
    """The samples: where, column, value, reason."""
    return [
        (bad["where"], bad["column"], bad["value"], bad["reason"])
        for bad in report(output)["samples"]
    ]


@pytest.mark.parametrize("block", [1 << 24, 40])
@pytest.mark.parametrize(
    ("name", "content", "options", "kept", "bad"),
    [
        (
            "a.csv",
            b'user,item,t,note\n1,2,3,"x\ny"\n\n,2,3,\n1,2\n1,\xff,4,\n\xff\n1,2,soon,\n1,4,2,\xff\n',
            TIMES,
            {1: [4, 2]},
            [
                ("line 5", "user", "", "is empty"),
                ("line 6", None, "1,2", "has 2 columns instead of 4"),
                ("line 7", "item", "\ufffd", "is not valid UTF-8"),
                ("line 8", None, "\ufffd", "has 1 column instead of 4"),
                ("line 9", "t", "soon", "is not a number"),
            ],
        ),
        (
            "a.tsv",
            b"1\n\n1\t2\t3\n1\t2\ta\t4\nx\t2\t5\n" + b"y" * 1025 + b"\t2\t5\n1\0\t2\t5\n",
            {**TIMES, "columns": ["user", "item", "t"]},
            {"1": [2], "x": [2]},
            [
                ("line 1", None, "1", "has 1 column instead of 3"),
                ("line 4", None, "1\t2\ta\t4", "has 4 columns instead of 3"),
                ("line 6", "user", "y" * 77 + "...", "is longer than 1024 bytes"),
                ("line 7", "user", "1\0", "is one with a NUL byte"),
            ],
        ),
        (
            "a.txt",
            b"1\n 7   2 \n\n1 2 3\n\xe9 5\n7 3\n",
            {},
            {7: [2, 3]},
            [
                ("line 1", None, "1", "has 1 column instead of 2"),
                ("line 4", None, "1 2 3", "has 3 columns instead of 2"),
                ("line 5", "user", "\ufffd", "is not valid UTF-8"),
            ],
        ),
        (
            "ratings.dat",
            b"1::2::5::10\n1::2::5\n1::3::good::10\n1::4::nan::11\n1::5::4::12\n",
            {"source": "movielens", "min_rating": 1},
            {1: [2, 5]},
            [
                ("line 2", None, "1::2::5", "has 3 columns instead of 4"),
                ("line 3", "rating", "good", "is not a number"),
                ("line 4", "rating", "nan", "is not a number"),
            ],
        ),
        (
            "a.jsonl",
            b'null\n{"user":1.5,"item":"a","t":1}\n{"user":1,"item":"a","t":1}\n{"user":1,"item"\n'
            b'\n[1]\nnull\n{"user":"x","item":"a","t":1}\n{"user":1,"item":"b","t":5.0}\n'
            b'{"user":1,"item":"c","t":9007199254740993}\n{"user":1,"item":"d","t":1e17}\n'
            b'{"user":1,"item":"e"}{"user":1,"item":"f"}\n{"user":1,\n"item":"g","t":1}\n'
            b'{"user":1,"item":"\xff","t":3}\n{"item":"a","t":1}\n{"user":1,"item":"h","t":0.5}\n'
            b'{"user":123456789012345678901,"item":"h","t":1}\n',
            TIMES,
            {1: ["a", "b", "c"]},
            [
                ("line 1", None, "null", "is JSON but no object"),
                (
                    "line 2",
                    None,
                    '{"user":1.5,"item":"a","t":1}',
                    "has another type in 'user' than the first record",
                ),
                ("line 4", None, '{"user":1,"item"', "is not JSON"),
                ("line 6", None, "[1]", "is JSON but no object"),
                ("line 7", None, "null", "is JSON but no object"),
                (
                    "line 8",
                    None,
                    '{"user":"x","item":"a","t":1}',
                    "has another type in 'user' than the first record",
                ),
                ("line 11", "t", "1e+17", "is a float too large to be exact"),
                ("line 12", None, '{"user":1,"item":"e"}{"user":1,"item":"f"}', "is not JSON"),
                ("line 13", None, '{"user":1,', "is not JSON"),
                ("line 14", None, '"item":"g","t":1}', "is not JSON"),
                ("line 15", "item", "\ufffd", "is not valid UTF-8"),
                ("line 16", "user", None, "is missing"),
                ("line 17", "t", "0.5", "is no whole number"),
                (
                    "line 18",
                    None,
                    '{"user":123456789012345678901,"item":"h","t":1}',
                    "has a number in 'user' that does not fit 64 bits",
                ),
            ],
        ),
    ],
    ids=short,
)
def test_bad_rows_of_texts(
    name: str,
    content: bytes,
    options: dict[str, Any],
    kept: dict[Any, list[Any]],
    bad: list[Any],
    block: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(formats, "_BLOCK", block if name != "a.tsv" else max(block, 2048))
    (tmp_path / name).write_bytes(content)
    dataset = run(tmp_path / name, tmp_path / "out", **SKIP, **options)
    assert {user: h.items for user, h in read_back(dataset).items()} == kept
    assert told(tmp_path / "out") == bad
    good = sum(map(len, kept.values()))
    assert list(counts(dataset).items())[:2] == [
        ("events_read", good + len(bad)),
        ("bad_rows", len(bad)),
    ]
    found = report(tmp_path / "out")
    assert (found["rows_read"], found["bad_rows"]) == (good + len(bad), len(bad))
    assert sum(found["reasons"].values()) == len(bad)
    assert {each["file"] for each in found["samples"]} == {str(tmp_path / name)}


@pytest.mark.parametrize("rows", [2**20, 2])
def test_bad_rows_of_parquet(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_ROWS", rows)
    monkeypatch.setattr("pipeline.prepare.read.PIECE_ROWS", rows)
    table = pa.table(
        {
            "user": pa.array([1, None, 3, 4, 5, 6]),
            "item": ["a", "b", "", "d", "e", "f"],
            "t": [1.0, 2.0, 3.0, float("nan"), -5.0, 2.5],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    dataset = run(tmp_path / "a.parquet", tmp_path / "out", **SKIP, **TIMES)
    assert {u: (h.items, h.times) for u, h in read_back(dataset).items()} == {
        1: (["a"], [1]),
        5: (["e"], [-5]),
    }
    assert told(tmp_path / "out") == [
        ("row 2", "user", None, "is missing"),
        ("row 3", "item", "", "is empty"),
        ("row 4", "t", "nan", "is no whole number"),
        ("row 6", "t", "2.5", "is no whole number"),
    ]


def test_bad_rows_of_lists(tmp_path: Path) -> None:
    table = pa.table(
        {"user": pa.array([1, 2, None]), "item": [[5, None], [6], [7]], "t": [[1, 2], [1, 2], [3]]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = run(tmp_path / "a.parquet", tmp_path / "out", **SKIP, **TIMES)
    assert {user: h.items for user, h in read_back(dataset).items()} == {1: [5]}
    assert told(tmp_path / "out") == [
        ("row 1, entry 2", "item", None, "is missing"),
        ("row 2", None, "1 and 2", "has lists of different lengths"),
        ("row 3, entry 1", "user", None, "is missing"),
    ]


def test_a_bad_row_does_not_decide_what_ids_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item,t\nx,y,soon\n1,,5\n1,7,5\n")
    dataset = run(tmp_path / "a.csv", tmp_path / "out", **SKIP, **TIMES)
    assert (dataset.manifest.user_type, dataset.manifest.item_type) == ("int64", "int64")


def test_the_first_time_that_is_one_tells_how_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.prepare.values._LOOK", 2)
    times = ["soon", "later", "never", "1970-01-01T00:01Z", "5", "1970-01-01T00:02+00:00"]
    (tmp_path / "a.csv").write_text("user,item,t\n" + "".join(f"1,2,{t}\n" for t in times))
    dataset = run(tmp_path / "a.csv", tmp_path / "out", **SKIP, **TIMES)
    assert read_back(dataset)[1].times == [60, 120]
    assert [bad[0] for bad in told(tmp_path / "out")] == ["line 2", "line 3", "line 4", "line 6"]


def test_far_times_beside_fine_ones(tmp_path: Path) -> None:
    """Arrow reads no column that holds both, so each row is read alone."""
    times = ["9999-12-31", "1970-01-01T00:00:01.000000000", "1970-01-01T00:00:00.000000001", "x"]
    (tmp_path / "a.csv").write_text("user,item,t\n" + "".join(f"1,2,{t}\n" for t in times))
    dataset = run(tmp_path / "a.csv", tmp_path / "out", **SKIP, **TIMES)
    assert read_back(dataset)[1].times == [1, 253402214400]
    assert [bad[0] for bad in told(tmp_path / "out")] == ["line 4", "line 5"]


def test_hexadecimal_is_a_number_among_floats_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item,t\n1,2,0x11\n1,2,5.0\n1,2,0x10\n")
    assert read_back(run(tmp_path / "a.csv", tmp_path / "out", **TIMES))[1].times == [5, 16, 17]


CELLS = st.sampled_from(["1", "22", "", "soon", "\udcff", "7.0", "7.5", "nan", "0x1", "a,b", '"q"'])


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=30), data=st.data())
def test_blocks_and_order_decide_nothing(
    rows: list[tuple[str, ...]], data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Skipping gives what the good rows alone give."""
    folder = tmp_path_factory.mktemp("rows")
    texts = [",".join(row) for row in rows]

    def good(row: tuple[str, ...]) -> bool:
        user, item, time = row
        ids = all(key not in ("", "\udcff", "a,b") for key in (user, item))
        return ids and time in ("1", "22", "7.0", "0x1")

    kept = [text for row, text in zip(rows, texts, strict=True) if good(row)]
    if not kept:
        return
    options: dict[str, Any] = {"timestamp": "t", "columns": ["user", "item", "t"]}
    (folder / "all.csv").write_bytes("\n".join(texts).encode("utf-8", "surrogateescape"))
    (folder / "good.csv").write_text("\n".join(kept))
    expected = run(folder / "good.csv", folder / "good", **options)
    block = data.draw(st.integers(24, 100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_BLOCK", block)
        skipped = run(
            folder / "all.csv", folder / "all", bad_rows="skip", most_bad_rows=1, **options
        )
    assert skipped.fingerprint == expected.fingerprint
    assert counts(skipped)["bad_rows"] == len(rows) - len(kept)


GOOD_LINES = [
    b'{"user":1,"item":"a","t":1}',
    b' {"item":"b","t":7.0,"user":2,"x":{"t":null}} ',
    b'{"user":2,"item":"c","t":9007199254740993}',
    b'{"user":2,"item":"\\u00e9","t":3}\r',
    b'{"user":3,"item":"d","t":4,"x":"\xff"}',
]
BAD_LINES = [
    b"null",
    b"{}",
    b"[]",
    b'{"user":1,"item":"a","t":null}',
    b'{"user":1,"item":"a","t":1',
    b'"item":"a","t":1}',
    b'{"user":1,"item":2,"t":1}',
    b'{"user":1.0,"item":"a","t":1}',
    b'{"user":1,"item":"a","t":1.5}',
    b'{"user":1,"item":"a","t":1}{"user":1,"item":"a","t":1}',
    b'{"user":1,"item":"\xff","t":1}',
    b'{"user":1,"user":1,"item":"a","t":1}',
    b'{"user":1,"item":"","t":1}',
    b"\0",
]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.sampled_from(GOOD_LINES + BAD_LINES), min_size=1, max_size=40),
    block=st.integers(1, 400),
    part=st.integers(1, 8),
)
def test_blocks_of_json_decide_nothing(
    lines: list[bytes], block: int, part: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    lines = [GOOD_LINES[0], *lines]  # the first record says of which type all are
    kept = [line for line in lines if line in GOOD_LINES]
    options: dict[str, Any] = {"timestamp": "t", "timestamp_unit": "s"}
    (folder / "all.jsonl").write_bytes(b"\n".join(lines))
    (folder / "good.jsonl").write_bytes(b"\n".join(kept))
    expected = run(folder / "good.jsonl", folder / "good", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "_BLOCK", block)
        patch.setattr("pipeline.prepare.json_lines._PART", part)
        skipped = run(
            folder / "all.jsonl", folder / "all", bad_rows="skip", most_bad_rows=1, **options
        )
    assert skipped.fingerprint == expected.fingerprint
    assert counts(skipped)["bad_rows"] == len(lines) - len(kept)


def test_too_many_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"{n},{n}\n" for n in range(998)]
    (tmp_path / "a.csv").write_text("user,item\n" + "".join(rows) + "1\n,5\n")
    assert failure(tmp_path / "a.csv", bad_rows="skip") == (
        "bad rows: 2 of 1,000 (0.002 of all), more than most_bad_rows: 0.001 allows; "
        "the first: a.csv, line 1000: '1' has 1 column instead of 2"
    )
    dataset = run(tmp_path / "a.csv", tmp_path / "out", bad_rows="skip", most_bad_rows=0.002)
    assert counts(dataset)["bad_rows"] == 2
    monkeypatch.setattr("pipeline.prepare.bad._WORTH_STOPPING", 1)
    assert failure(tmp_path / "a.csv", bad_rows="skip", most_bad_rows=0) == (
        "bad rows: 2 so far, more than most_bad_rows allows of all files; "
        "the first: a.csv, line 1000: '1' has 1 column instead of 2"
    )


def test_nothing_but_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n1\n2\n")
    assert failure(tmp_path / "a.csv", bad_rows="skip", most_bad_rows=1) == (
        "no events left: bad_rows removed the last 2 of 2 read; relax it"
    )


def test_samples_are_few_and_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.prepare.bad._NEAR", 12)
    rows = "".join(f"1,{n}\n,{n}\n7\n" for n in range(100))
    (tmp_path / "a.csv").write_text("user,item\n" + rows)
    run(tmp_path / "a.csv", tmp_path / "out", **SKIP)
    assert report(tmp_path / "out")["bad_rows"] == 200
    records = [row for row in range(300) if row % 3][:20]
    assert [bad[0] for bad in told(tmp_path / "out")] == [
        f"line {row + 2}" if row < 12 else f"record {row + 2}" for row in records
    ]


def test_samples_of_several_files(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("1 2\n" + "1\n" * 15)
    run(tmp_path, tmp_path / ".out", bad_rows="skip", most_bad_rows=1)
    found = report(tmp_path / ".out")
    assert found["bad_rows"] == 45
    files = [Path(bad["file"]).name for bad in found["samples"]]
    assert files == ["a.txt"] * 15 + ["b.txt"] * 5


def test_no_bad_rows_and_no_report(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n1,2\n")
    dataset = run(tmp_path / "a.csv", tmp_path / "out", bad_rows="skip")
    assert list(counts(dataset).items())[:2] == [("events_read", 1), ("bad_rows", 0)]
    assert "bad_rows.json" not in storage.files_below(str(tmp_path / "out"))
    assert "bad_rows" not in counts(run(tmp_path / "a.csv", tmp_path / "refuse"))


def test_a_report_goes_with_its_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n1,2\n1\n")
    run(tmp_path / "a.csv", tmp_path / "out", **SKIP)
    assert (tmp_path / "out" / "bad_rows.json").exists()
    (tmp_path / "b.csv").write_text("user,item\n1,2\n")
    run(tmp_path / "b.csv", tmp_path / "out", overwrite=True, **SKIP)
    assert not (tmp_path / "out" / "bad_rows.json").exists()


PARQUET = pa.BufferOutputStream()
pq.write_table(pa.table({"user": list(range(1000)), "item": list(range(1000))}), PARQUET)
WHOLE = PARQUET.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "options", "line"),
    [
        ("a.parquet", WHOLE[:-20], {}, "cannot read a.parquet as parquet: "),
        ("a.parquet", WHOLE[:200] + b"\0" * 200 + WHOLE[400:], {}, "cannot read a.parquet"),
        ("a.csv.gz", gzip.compress(b"user,item\n1,2\n")[:-9], {}, "cannot read a.csv.gz: "),
        ("a.csv", b"user,items\n1,2\n", {}, "a.csv has no column 'item'"),
        ("a.jsonl", b'{"user":1}\n{"user":1,"item":"a"}\n'[:11], {}, "a.jsonl has no column"),
        (
            "a.csv",
            b'user,item\n1,2\n1\n1,"2\n1,2\n1,2\n',
            {},
            "a.csv, line 4: a quote in this record is not closed",
        ),
        (
            "a.csv",
            b'user,item\n1,"2\n1,2',
            {},
            "a.csv, line 2: a quote in this record is not closed",
        ),
        (
            "a.csv",
            b'user,item\n1,2\n1\n1,"2\n' + b"1,2\n" * 100,
            {"block": 64},
            "a.csv, line 4: a quote in this record is not closed",
        ),
    ],
    ids=short,
)
def test_a_bad_file_is_refused_all_the_same(
    name: str,
    content: bytes,
    options: dict[str, Any],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(formats, "_BLOCK", options.get("block", 1 << 24))
    (tmp_path / name).write_bytes(content)
    assert failure(tmp_path / name, bad_rows="skip", most_bad_rows=1).startswith(line)


@pytest.mark.parametrize(
    ("columns", "options", "line"),
    [
        (
            {"user": [1.0], "item": [1]},
            {},
            "a.parquet, row 1: column 'user' has the type double, but user ids are integers or "
            "strings; cast it",
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
    ],
    ids=short,
)
def test_a_column_of_another_type_is_refused_all_the_same(
    columns: dict[str, Any], options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert failure(tmp_path / "a.parquet", bad_rows="skip", most_bad_rows=1, **options) == line


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([1_600_000_000_000, 5, 1_600_000_000_001], "ms"),
        ([1_600_000_000_000_000] * 2, "us"),
        ([1_600_000_000_000_000_000] * 2, "ns"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_times_that_can_hardly_be_seconds(
    times: list[int], unit: Any, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"user": times, "item": times, "t": times}), path)
    elif suffix == "csv":
        path.write_text("user,item,t\n" + "".join(f"1,2,{t}\n" for t in times))
    else:
        path.write_text("".join(f'{{"user":1,"item":2,"t":{t}}}\n' for t in times))
    assert failure(path, **TIMES) == (
        "timestamps are taken for seconds, but then most of them lie after the year 2200; "
        f"set timestamp_unit: {unit}, or s where that is meant"
    )
    for said in (unit, "s"):
        dataset = run(path, tmp_path / said, timestamp_unit=said, **TIMES)
        assert dataset.manifest.timestamp_unit == said


@pytest.mark.parametrize("times", [[-5, 1_600_000_000_000], ["9999-12-31", "9999-12-31"]])
def test_times_that_may_well_be_seconds(times: list[Any], tmp_path: Path) -> None:
    rows = "".join(f"1,2,{time}\n" for time in times)
    (tmp_path / "a.csv").write_text(f"user,item,t\n{rows}")
    assert run(tmp_path / "a.csv", tmp_path / "out", **TIMES).manifest.events == 2


def test_options_of_bad_rows() -> None:
    with pytest.raises(ValueError, match="less than or equal to 1"):
        run("a.csv", Path("out"), most_bad_rows=2)


def test_a_start_after_an_interruption_still_knows_of_bad_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("user,item\n1,2\n1\n")
    sort = Embedded._sort

    def interrupted(self: Any, *args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Embedded, "_sort", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.csv", tmp_path / "out", **SKIP)
    monkeypatch.setattr(Embedded, "_sort", sort)

    def again(*args: Any) -> Any:
        raise AssertionError("what was dealt is dealt again")

    monkeypatch.setattr("pipeline.prepare.embedded.deal", again)
    dataset = run(tmp_path / "a.csv", tmp_path / "out", **SKIP)
    assert counts(dataset)["bad_rows"] == 1
    assert told(tmp_path / "out") == [("line 3", None, "1", "has 1 column instead of 2")]


def test_refused_is_told_as_ever(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user,item\n1,2\n1\n")
    with pytest.raises(LonghaulError, match="line 3 has 1 column, 2 are in its header line"):
        run(tmp_path / "a.csv", tmp_path / "out")
