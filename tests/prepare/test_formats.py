"""Every format, compression and way of writing gives the same histories; how ids get a type."""

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LonghaulError
from pipeline.prepare import formats
from tests.prepare.oracle import History, check_contract, read_back, run, short

# user, item, time; in an order that is not that of time
ROWS = [(7, 30, 5), (3, 10, 2), (7, 10, 1), (7, 20, 5), (3, 30, 1), (7, 30, 9)]
# n = 4: train [0, 2), validation [2, 3), test [3, 4); n = 2: trained on only
EXPECTED = {
    7: History([10, 30, 20, 30], [1, 5, 5, 9], marks=(2, 2, 3, 3)),
    3: History([30, 10], [1, 2], marks=(2, 2, 2, 2)),
}


def compressed(content: bytes, name: str, folder: Path) -> Path:
    """``content`` in a file of this name, compressed as its suffix says."""
    path = folder / name
    if name.endswith(".gz"):
        content = gzip.compress(content)
    elif name.endswith(".zst"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        content = sink.getvalue().to_pybytes()
    path.write_bytes(content)
    return path


def as_parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def separated(separator: str, header: bool) -> bytes:
    lines = [separator.join(map(str, row)) for row in ROWS]
    return ("\n".join([separator.join(("u", "i", "t")), *lines][not header :]) + "\n").encode()


JSON = "\n".join(json.dumps({"x": [1], "t": t, "u": u, "i": i}) for u, i, t in ROWS).encode()
PARQUET = as_parquet(
    pa.table({name: [row[c] for row in ROWS] for c, name in enumerate("uit")}), row_group_size=2
)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("log.parquet", PARQUET, None),
        ("log.csv", separated(",", True), None),
        ("log.csv", separated(",", False), ["u", "i", "t"]),
        ("log.tsv", separated("\t", True), None),
        ("log.inter", separated("\t", True), None),
        ("log.tsv", separated("\t", False), ["u", "i", "t"]),
        ("log.jsonl", JSON, None),
        ("log.txt", separated(" ", False), ["u", "i", "t"]),
    ],
    ids=short,
)
def test_every_format_and_compression(
    name: str, content: bytes, columns: list[str] | None, suffix: str, tmp_path: Path
) -> None:
    log = compressed(content, name + suffix, tmp_path)
    dataset = run(log, tmp_path / "out", user="u", item="i", timestamp="t", columns=columns)
    assert read_back(dataset) == EXPECTED
    check_contract(dataset)
    (lineage,) = dataset.manifest.lineage.inputs
    assert (lineage.path, lineage.bytes) == (str(log), log.stat().st_size)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", b"\xef\xbb\xbfu,i\n1,a\n1,b\n"),
        ("crlf.csv", b"u,i\r\n1,a\r\n1,b\r\n"),
        ("blank.csv", b"u,i\n\n1,a\n\n1,b\n\n"),
        ("quoted.csv", b'"u",i\n"1",a\n1,"b"'),
        ("more.csv", b'note,i,"u, id",u\n"x\ny, ""z""",a,9,1\n-,b,9,1\n'),
        ("blank.tsv", b"i\tu\n\na\t1\nb\t1\n"),
        ("blanks.txt", b"  1\t a \r\n\n \t\n1 \t \tb\t\n"),
        ("bom.txt", b"\xef\xbb\xbf1 a\n1 b"),
        ("blank.jsonl", b'\n{"u": 1, "i": "a"}\n\n  {"i":"b","u":1,"z":{"u":2}}  \n'),
        ("bom.jsonl", b'\xef\xbb\xbf{"u": 1, "i": "a"}\r\n{"u": 1, "i": "b"}'),
        ("two-members.csv.gz", b""),
    ],
    ids=short,
)
def test_ways_of_writing(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content or gzip.compress(b"u,i\n1,a\n") + gzip.compress(b"1,b\n"))
    assert read_back(run(path, tmp_path / "out", user="u", item="i")) == {
        1: History(["a", "b"], marks=(2, 2, 2, 2))
    }


def test_quotes_mean_nothing_in_tsv_and_text(tmp_path: Path) -> None:
    (tmp_path / "log.tsv").write_text('user\titem\n1\t"a\n1\tb"\n')
    (tmp_path / "log.txt").write_text('1 "c"\n')
    dataset = run([f"{tmp_path}/log.tsv", f"{tmp_path}/log.txt"], tmp_path / "out")
    assert read_back(dataset)[1].items == ['"a', 'b"', '"c"']


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.txt", "log.jsonl"])
def test_blocks_do_not_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {
        "log.csv": "user,item\n" + "".join(f'{n % 7},"a\n{n % 5}"\n' for n in range(100)),
        "log.tsv": "user\titem\n" + "".join(f"{n % 7}\ta{n % 5}\n" for n in range(100)),
        "log.txt": "".join(f"{n % 7}  a{n % 5}\n" for n in range(100)),
        "log.jsonl": "".join(f'{{"user":{n % 7},"item":"a{n % 5}"}}\n' for n in range(100)),
    }[name]
    (tmp_path / name).write_text(content)
    whole = run(tmp_path / name, tmp_path / "whole")
    monkeypatch.setattr(formats, "_BLOCK", 64)
    blocks = run(tmp_path / name, tmp_path / "blocks")
    assert read_back(blocks) == read_back(whole)
    assert whole.manifest.events == 100
    assert blocks.fingerprint == whole.fingerprint


def test_one_odd_id_in_the_last_block_makes_all_strings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_BLOCK", 64)
    rows = [f"{n},{n}\n" for n in range(100)]
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(rows) + "007,8\n")
    dataset = run(tmp_path / "log.csv", tmp_path / "out")
    assert (dataset.manifest.user_type, dataset.manifest.item_type) == ("string", "int64")
    assert set(read_back(dataset)) == {str(n) for n in range(100)} | {"007"}


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (["1", "-5", "0"], "int64"),
        (["9223372036854775807", "-9223372036854775808"], "int64"),
        (["9223372036854775808", "1"], "string"),
        (["-9223372036854775809", "1"], "string"),
        (["01", "1"], "string"),
        (["+1"], "string"),
        (["-0"], "string"),
        (["0x10"], "string"),
        (["1.0"], "string"),
        (["1 "], "string"),
        (["1_0"], "string"),
        (["١"], "string"),  # a digit, but not an ASCII one
        (["a", "1"], "string"),
    ],
)
def test_type_of_text_ids(ids: list[str], kind: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"{key},x\n" for key in ids))
    dataset = run(tmp_path / "log.csv", tmp_path / "out")
    assert dataset.manifest.user_type == kind
    assert set(read_back(dataset)) == {int(key) if kind == "int64" else key for key in ids}


@pytest.mark.parametrize(
    ("array", "kind", "keys"),
    [
        (pa.array([3, 1], pa.int8()), "int64", {3, 1}),
        (pa.array([3, 2**63], pa.uint64()), "string", {"3", str(2**63)}),
        (pa.array([3, 2**63 - 1], pa.uint64()), "int64", {3, 2**63 - 1}),
        (pa.array(["3", "1"]), "string", {"3", "1"}),
        (pa.array(["3", "1"], pa.large_string()), "string", {"3", "1"}),
        (pa.array(["3", "1"], pa.string_view()), "string", {"3", "1"}),
        (pa.array(["b", "b"]).dictionary_encode(), "string", {"b"}),
    ],
)
def test_parquet_types_are_kept(array: pa.Array, kind: str, keys: set[Any], tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": array, "item": [1, 2]}), tmp_path / "log.parquet")
    dataset = run(tmp_path / "log.parquet", tmp_path / "out")
    assert dataset.manifest.user_type == kind
    assert set(read_back(dataset)) == keys
    check_contract(dataset)


def test_dots_in_names_of_columns(tmp_path: Path) -> None:
    table = pa.table({"user.id": [1], "user": [2], "item.id": [3]})
    pq.write_table(table, tmp_path / "log.parquet")
    dataset = run(tmp_path / "log.parquet", tmp_path / "out", user="user.id", item="item.id")
    assert read_back(dataset)[1].items == [3]


def test_json_types_are_kept(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"user": "5", "item": 5}\n{"user": "6", "item": -5}\n')
    dataset = run(tmp_path / "log.jsonl", tmp_path / "out")
    assert (dataset.manifest.user_type, dataset.manifest.item_type) == ("string", "int64")


def test_files_of_several_types_are_strings_together(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": [5, 6], "item": [1, 1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"user": ["5", "x"], "item": [2, 2]}), tmp_path / "b.parquet")
    (tmp_path / "c.csv").write_text("user,item\n5,3\n")
    dataset = run(tmp_path, tmp_path / ".out")
    assert {u: h.items for u, h in read_back(dataset).items()} == {
        "5": [1, 2, 3],
        "6": [1],
        "x": [2],
    }


def test_order_of_files(tmp_path: Path) -> None:
    for name in ("b", "a", "sub/c", "_hidden", "sub/.hidden", "_sub/d"):
        path = tmp_path / "logs" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"1 {name[-1]}\n")

    def items(inputs: list[str], out: str) -> list[Any]:
        return read_back(run(inputs, tmp_path / out))[1].items

    logs = f"{tmp_path}/logs"
    assert items([logs], "folder") == ["a", "b", "c"]
    assert items([f"{logs}/*.txt"], "glob") == ["n", "a", "b"]  # _ sorts before letters
    assert items([f"{logs}/b.txt", f"{logs}/a.txt"], "list") == ["b", "a"]
    assert items([f"{logs}/sub", f"{logs}/[ab].txt"], "both") == ["c", "a", "b"]


def test_relative_path_and_file_with_brackets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log[1].txt").write_text("1 2\n")
    dataset = run("log[1].txt", tmp_path / "out")
    assert dataset.manifest.lineage.inputs[0].path == f"{tmp_path}/log[1].txt"


def test_format_overrides_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "events.log").write_text("user,item\n1,2\n")
    assert read_back(run(tmp_path / "events.log", tmp_path / "out", format="csv"))[1].items == [2]


MOMENT = datetime.datetime(2020, 1, 2, 3, 4, 5)
SECONDS = 1577934245  # the same moment


@pytest.mark.parametrize(
    ("written", "unit", "stored", "stored_unit"),
    [
        (["5", "7"], None, [5, 7], "s"),
        (["-5", "7.0"], "ms", [-5, 7], "ms"),
        (["8.8125e8", "881250001"], None, [881250000, 881250001], "s"),
        (["9007199254740993", "1.0"], None, [1, 9007199254740993], "s"),
        (["2020-01-02T03:04:05", "2020-01-03"], None, [SECONDS, 1578009600], "s"),
        (["2020-01-02 03:04:05.000", "2020-01-02 03:05"], None, [SECONDS, SECONDS + 55], "s"),
        (["2020-01-02T03:04:05.250"], "ms", [SECONDS * 1000 + 250], "ms"),
        (["2020-01-02T03:04:05.000000001"], "ns", [SECONDS * 10**9 + 1], "ns"),
        (["2020-01-02T03:04:05Z", "2020-01-02T04:04:06+01:00"], None, [SECONDS, SECONDS + 1], "s"),
        (["9999-12-31"], None, [253402214400], "s"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_written_times(
    written: list[str], unit: Any, stored: list[int], stored_unit: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"log.{suffix}"
    if suffix == "csv":
        path.write_text("user,item,t\n" + "".join(f"1,2,{t}\n" for t in written))
    elif suffix == "jsonl":
        path.write_text("".join(f'{{"user":1,"item":2,"t":"{t}"}}\n' for t in written))
    else:
        count = len(written)
        pq.write_table(pa.table({"user": [1] * count, "item": [2] * count, "t": written}), path)
    dataset = run(path, tmp_path / "out", timestamp="t", timestamp_unit=unit)
    assert read_back(dataset)[1].times == stored
    assert dataset.manifest.timestamp_unit == stored_unit


@pytest.mark.parametrize(
    ("array", "unit", "stored", "stored_unit"),
    [
        (pa.array([5, 7], pa.uint16()), None, [5, 7], "s"),
        (pa.array([5.0, 7.0]), "us", [5, 7], "us"),
        (pa.array([MOMENT], pa.timestamp("ms")), None, [SECONDS * 1000], "ms"),
        (pa.array([MOMENT], pa.timestamp("us", "Asia/Tokyo")), None, [SECONDS * 10**6], "us"),
        (pa.array([MOMENT], pa.timestamp("ns")), "s", [SECONDS], "s"),
        (pa.array([MOMENT], pa.timestamp("s")), "ns", [SECONDS * 10**9], "ns"),
        (pa.array([MOMENT.date()], pa.date32()), None, [1577923200], "s"),
        (pa.array([MOMENT.date()], pa.date64()), "ms", [1577923200000], "ms"),
    ],
)
def test_parquet_times(
    array: pa.Array, unit: Any, stored: list[int], stored_unit: str, tmp_path: Path
) -> None:
    count = len(array)
    log = pa.table({"user": [1] * count, "item": [2] * count, "t": array})
    pq.write_table(log, tmp_path / "log.parquet")
    dataset = run(tmp_path / "log.parquet", tmp_path / "out", timestamp="t", timestamp_unit=unit)
    assert read_back(dataset)[1].times == stored
    assert dataset.manifest.timestamp_unit == stored_unit


def test_json_numbers_as_times(tmp_path: Path) -> None:
    big = 1600000000123456789
    (tmp_path / "a.jsonl").write_text(f'{{"user":1,"item":2,"t":{big}}}\n')
    (tmp_path / "b.jsonl").write_text(
        '{"user":1,"item":2,"t":5}\n{"user":1,"item":2,"t":6.0}\n{"user":1,"item":2,"t":7e1}\n'
    )
    dataset = run([f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl"], tmp_path / "out", timestamp="t")
    assert read_back(dataset)[1].times == [5, 6, 70, big]


def test_files_may_write_times_in_different_ways(tmp_path: Path) -> None:
    for name, when in (("a", "60"), ("b", "1970-01-01T00:02"), ("c", "1970-01-01T01:03+01:00")):
        (tmp_path / f"{name}.csv").write_text(f"user,item,t\n1,2,{when}\n")
    dataset = run(tmp_path, tmp_path / ".out", timestamp="t")
    assert read_back(dataset)[1].times == [60, 120, 180]


def test_units_of_files_must_agree(tmp_path: Path) -> None:
    for name, unit in (("a", "ms"), ("b", "us")):
        times = pa.array([MOMENT], pa.timestamp(unit))
        pq.write_table(pa.table({"user": [1], "item": [2], "t": times}), tmp_path / f"{name}.pq")
    with pytest.raises(LonghaulError) as error:
        run(tmp_path, tmp_path / ".out", timestamp="t")
    assert str(error.value) == (
        f"timestamps of {tmp_path}/a.pq are in ms, those of {tmp_path}/b.pq in us; "
        "set timestamp_unit"
    )
    dataset = run(tmp_path, tmp_path / ".out", timestamp="t", timestamp_unit="us")
    assert read_back(dataset)[1].times == [SECONDS * 10**6] * 2
