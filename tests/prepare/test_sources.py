"""Files as public data sets have them: one short option, and every column is found."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LonghaulError
from pipeline.prepare import formats
from tests.prepare.oracle import History, check_contract, counts, read_back, run, short
from tests.prepare.test_errors import failure

# user, item, rating, time in seconds
RATINGS = [(3, 10, 5, 978300760), (3, 11, 2, 978300000), (8, 10, 4, 978302109)]
REVIEWERS = {3: "A1YJEY40YUW4SE", 8: "A3MQK3U5WV0PK3"}
PRODUCTS = {10: "B000GKXY4S", 11: "780639705X"}


def lines(pattern: str, header: str = "") -> bytes:
    """The ratings as text; ``{t}`` is the time, ``{ms}`` the same in milliseconds."""
    rows = [
        pattern.format(u=u, i=i, r=r, t=t, ms=1000 * t, U=REVIEWERS[u], I=PRODUCTS[i])
        for u, i, r, t in RATINGS
    ]
    return "".join(f"{row}\n" for row in [header, *rows] if row).encode()


REVIEW_2014 = (
    '{{"reviewerID": "{U}", "asin": "{I}", "helpful": [0, 1], "overall": {r}.0, '
    '"unixReviewTime": {t}, "reviewTime": "01 1, 2001"}}'
)
REVIEW_2018 = (
    '{{"overall": {r}.0, "verified": true, "reviewerID": "{U}", "asin": "{I}", '
    '"style": {{"Format:": "CD"}}, "unixReviewTime": {t}}}'
)
REVIEW_2023 = (
    '{{"rating": {r}.0, "title": "-", "images": [], "asin": "X", "parent_asin": "{I}", '
    '"user_id": "{U}", "timestamp": {ms}, "helpful_vote": 0}}'
)


@pytest.mark.parametrize(
    ("source", "name", "content", "unit"),
    [
        ("movielens", "ratings.dat", lines("{u}::{i}::{r}::{t}"), "s"),
        ("movielens", "u.data", lines("{u}\t{i}\t{r}\t{t}"), "s"),
        (
            "movielens",
            "ratings.csv",
            lines("{u},{i},{r}.5,{t}", "userId,movieId,rating,timestamp"),
            "s",
        ),
        ("amazon", "reviews_2014.json", lines(REVIEW_2014), "s"),
        ("amazon", "reviews_2018.json.gz", gzip.compress(lines(REVIEW_2018)), "s"),
        ("amazon", "reviews_2023.jsonl", lines(REVIEW_2023), "ms"),
        ("amazon", "ratings_2014.csv", lines("{U},{I},{r}.0,{t}"), "s"),
        ("amazon", "ratings_2018.csv", lines("{I},{U},{r}.0,{t}"), "s"),
        (
            "amazon",
            "ratings_2023.csv.gz",
            gzip.compress(lines("{U},{I},{r}.0,{ms}", "user_id,parent_asin,rating,timestamp")),
            "ms",
        ),
        (
            "recbole",
            "a.inter",
            lines(
                "{u}\t{i}\t{r}\t{t}.0",
                "user_id:token\titem_id:token\trating:float\ttimestamp:float",
            ),
            "s",
        ),
        (
            "recbole",
            "b.inter",
            lines(
                "{t}e0\t{i}\t{u}\t{r}",
                "timestamp:float\titem_id:token\tsession_id:token\trating:float",
            ),
            "s",
        ),
    ],
    ids=short,
)
def test_variants(source: Any, name: str, content: bytes, unit: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    users, items = (REVIEWERS, PRODUCTS) if source == "amazon" else ({3: 3, 8: 8}, {10: 10, 11: 11})
    scale = {"s": 1, "ms": 1000}[unit]

    dataset = run(tmp_path / name, tmp_path / "all", source=source)
    found = read_back(dataset)
    assert {u: (h.items, h.times) for u, h in found.items()} == {
        users[3]: ([items[11], items[10]], [978300000 * scale, 978300760 * scale]),
        users[8]: ([items[10]], [978302109 * scale]),
    }
    assert dataset.manifest.timestamp_unit == unit
    assert dataset.manifest.lineage.options["source"] == source
    check_contract(dataset)

    rated = run(tmp_path / name, tmp_path / "rated", source=source, min_rating=4)
    assert counts(rated)["min_rating"] == 1
    assert rated.manifest.events == 2


def test_recbole_without_times(tmp_path: Path) -> None:
    (tmp_path / "a.inter").write_text("user_id:token\titem_id:token\n1\tb\n1\ta\n")
    dataset = run(tmp_path / "a.inter", tmp_path / "out", source="recbole")
    assert read_back(dataset) == {1: History(["b", "a"], marks=(2, 2, 2, 2))}


YAMBDA = {"uid": pa.uint32(), "timestamp": pa.uint32(), "item_id": pa.uint32()}


def test_yambda_flat_and_sequential_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = {
        "uid": [7, 7, 7, 9],
        "timestamp": [10, 5, 5, 0],
        "item_id": [1, 3, 2, 1],
        "event_type": ["listen", "like", "listen", "listen"],
    }
    kinds = {**YAMBDA, "event_type": pa.dictionary(pa.int32(), pa.string())}
    table = pa.table({name: pa.array(column, kinds[name]) for name, column in events.items()})
    pq.write_table(table, tmp_path / "multi_event.parquet")
    rows = {
        "uid": [7, 8, 9, 10],
        "timestamp": [[10, 5, 5], [], [0], None],
        "item_id": [[1, 3, 2], [], [1], None],
        "event_type": [["listen", "like", "listen"], [], ["listen"], []],
    }
    lists = {
        name: pa.array(column, pa.list_(pa.string() if name == "event_type" else YAMBDA[name]))
        for name, column in rows.items()
        if name != "uid"
    }
    table = pa.table({"uid": pa.array(rows["uid"], pa.uint32()), **lists})
    pq.write_table(table, tmp_path / "sequential.parquet", row_group_size=3)
    expected = {
        7: History([3, 2, 1], [5, 5, 10], ["like", "listen", "listen"], (1, 1, 2, 2)),
        9: History([1], [0], ["listen"], (1, 1, 1, 1)),
    }
    flat = run(tmp_path / "multi_event.parquet", tmp_path / "flat", source="yambda")
    assert read_back(flat) == expected
    assert flat.manifest.timestamp_unit == "s"
    listens = run(
        tmp_path / "multi_event.parquet",
        tmp_path / "listens",
        source="yambda",
        keep_actions=["listen"],
    )
    assert listens.manifest.events == 3
    sequential = run(tmp_path / "sequential.parquet", tmp_path / "sequential", source="yambda")
    assert sequential.fingerprint == flat.fingerprint
    monkeypatch.setattr(formats, "_ROWS", 2)
    monkeypatch.setattr("pipeline.prepare.read.PIECE_ROWS", 1)
    pieces = run(tmp_path / "sequential.parquet", tmp_path / "pieces", source="yambda")
    assert pieces.fingerprint == flat.fingerprint


def test_yambda_listens_by_how_much_was_played(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uid": pa.array([1, 1], pa.uint32()),
            "timestamp": pa.array([0, 5], pa.uint32()),
            "item_id": pa.array([3, 4], pa.uint32()),
            "is_organic": pa.array([1, 0], pa.uint8()),
            "played_ratio_pct": pa.array([100, 49], pa.uint16()),
            "track_length_seconds": pa.array([90, 90], pa.uint32()),
        }
    )
    pq.write_table(table, tmp_path / "listens.parquet")
    dataset = run(tmp_path / "listens.parquet", tmp_path / "out", source="yambda", min_rating=50)
    assert read_back(dataset)[1].items == [3]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)]
)
def test_lists_explode_without_a_source(kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"user": ["a", "b"], "item": pa.array([[2, 1], [1, 1]], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    histories = read_back(run(tmp_path / "a.parquet", tmp_path / "out"))
    assert {user: history.items for user, history in histories.items()} == {
        "a": [2, 1],
        "b": [1, 1],
    }


def test_lists_of_different_lengths(tmp_path: Path) -> None:
    table = pa.table({"user": [1, 2], "item": [[1], [2, 3]], "t": [[1], [2]]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert failure(tmp_path / "a.parquet", timestamp="t") == (
        "a.parquet, row 2: the lists in columns 'item' and 't' have 2 and 1 entries; mend the row"
    )


def test_an_entry_of_a_list_is_named(tmp_path: Path) -> None:
    table = pa.table({"user": [1, 2], "item": [[1], [2, None]]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert failure(tmp_path / "a.parquet") == (
        "a.parquet, row 2, entry 2: the item id in column 'item' is missing; "
        "drop the row or mend it"
    )


def test_options_go_first(tmp_path: Path) -> None:
    header = "userId,movieId,rating,timestamp,when,movie"
    (tmp_path / "r.csv").write_text(f"{header}\n1,2,3,4,1970-01-01T00:01,x\n")
    dataset = run(
        tmp_path / "r.csv", tmp_path / "out", source="movielens", item="movie", timestamp="when"
    )
    assert read_back(dataset)[1] == History(["x"], [60], marks=(1, 1, 1, 1))
    (tmp_path / "r.txt").write_text("5;6;1;2\n")
    dataset = run(
        tmp_path / "r.txt",
        tmp_path / "out2",
        source="movielens",
        format="csv",
        delimiter=";",
        columns=["movieId", "userId", "rating", "timestamp"],
    )
    assert read_back(dataset)[6].items == [5]
    (tmp_path / "u.data").write_text("1\t2\t3\t4000\n")
    dataset = run(tmp_path / "u.data", tmp_path / "o3", source="movielens", timestamp_unit="ms")
    assert dataset.manifest.timestamp_unit == "ms"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("header", [True, False])
def test_delimiters(
    name: str, header: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_BLOCK", 16)
    delimiter = ";" if name == "a.csv" else "::"
    rows = [("user", "item")] * header + [(str(n % 3), f"a{n}") for n in range(50)]
    content = "\n\n".join(delimiter.join(row) for row in rows)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf\n" + content.encode())
    columns = None if header else ["user", "item"]
    dataset = run(tmp_path / name, tmp_path / "out", delimiter=delimiter, columns=columns)
    assert read_back(dataset)[1].items == [f"a{n}" for n in range(1, 50, 3)]


@pytest.mark.parametrize(
    ("name", "content", "options", "line"),
    [
        (
            "movies.csv",
            b"movieId,title\n1,Heat\n",
            {"source": "movielens"},
            "input movies.csv is nothing that source movielens reads (ratings.csv; ratings.dat; "
            "u.data); give only its files of events, or leave source out and name the columns",
        ),
        (
            "a.inter",
            b"user_id:token\titem_id:token\n1\t2\n",
            {"source": "recbole", "min_rating": 3},
            "a.inter has columns for user, item only: rating and min_rating only work together: "
            "give both or neither",
        ),
        (
            "a.inter",
            b"user_id:token\titem_id:token\n1\t2\n",
            {"source": "recbole", "split": "time", "validation": "1d", "test": "1d"},
            "a.inter has columns for user, item only: a split by time needs the column of the "
            "times: give timestamp",
        ),
        (
            "ratings.dat",
            b"1::2::3::4\n1::2::3\n",
            {"source": "movielens"},
            "ratings.dat, line 2 has 3 columns, 4 are expected (user, item, rating, timestamp); "
            "mend the line, or name all columns with columns",
        ),
        (
            "u.data",
            b"1\t2\t3\t4\n",
            {"source": "movielens", "item": "movie"},
            "u.data has no column 'movie'; it has 'user', 'item', 'rating', 'timestamp'; "
            "did you mean 'item'? name the right one with item",
        ),
        (
            "a.csv",
            b"user::item\n",
            {"delimiter": "::"},
            "input a.csv is csv, where delimiter '::' has to be one character; set format to tsv, "
            "which has no quotes",
        ),
        (
            "a.jsonl",
            b"{}\n",
            {"delimiter": ";"},
            "input a.jsonl is jsonl, which has no delimiter to choose; set format to csv or tsv, "
            "or leave delimiter out",
        ),
    ],
    ids=short,
)
def test_what_does_not_fit(
    name: str, content: bytes, options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert failure(tmp_path / name, **options) == line


def test_files_with_other_uses(tmp_path: Path) -> None:
    (tmp_path / "a.inter").write_text("user_id:token\titem_id:token\n1\t2\n")
    (tmp_path / "b.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n1\t2\t3\n")
    with pytest.raises(LonghaulError) as error:
        run(tmp_path, tmp_path / ".out", source="recbole")
    assert str(error.value) == (
        f"{tmp_path}/b.inter has a column for timestamp, {tmp_path}/a.inter has none; "
        "prepare them apart"
    )


def test_files_of_one_source_may_differ(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(lines(REVIEW_2018))
    (tmp_path / "b.csv").write_bytes(lines("{U},{I},{r}.0,{t}"))
    dataset = run(tmp_path, tmp_path / ".out", source="amazon")
    assert dataset.manifest.events == 6
    (tmp_path / "c.json").write_bytes(lines(REVIEW_2023))
    with pytest.raises(LonghaulError, match=r"are in s, those of .*c\.json in ms"):
        run(tmp_path, tmp_path / ".out2", source="amazon")


def test_json_with_objects_in_one_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"user":1,"item":2}\n{"user":1,"item":2}{"user":1,"item":3}\n'
    )
    assert failure(tmp_path / "a.jsonl").startswith("a.jsonl, line 2 is not JSON (Extra data")
    (tmp_path / "b.jsonl").write_text('{"user":1,"item":2}\n{"user":1,\n"item":2}\n')
    assert failure(tmp_path / "b.jsonl").startswith("b.jsonl, line 2 is not JSON")
    (tmp_path / "c.jsonl").write_text('{"user":1,"item":2}\nnull\n')
    assert failure(tmp_path / "c.jsonl").startswith("c.jsonl, line 2 is JSON but no object")


def test_json_of_one_long_line(tmp_path: Path) -> None:
    record = json.dumps({"user": 1, "item": 2, "text": "x" * 3 * 2**20})
    (tmp_path / "a.jsonl").write_text(f"{record}\n{record}\n")
    assert run(tmp_path / "a.jsonl", tmp_path / "out").manifest.events == 2
