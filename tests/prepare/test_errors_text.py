"""Every kind of bad text and JSON ends in the one line that is written here."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from tests.prepare.oracle import short
from tests.prepare.test_errors import RATINGS, TIMES, failure


@pytest.mark.parametrize(
    ("name", "content", "options", "line"),
    [
        # columns
        (
            "a.csv",
            b"userId,movie,item\n1,2,3\n",
            {},
            "a.csv has no column 'user'; it has 'userId', 'movie', 'item'; "
            "did you mean 'userId'? name the right one with user",
        ),
        (
            "a.tsv",
            b"user\tx\n1\t2\n",
            {"item": "zzz"},
            "a.tsv has no column 'zzz'; it has 'user', 'x'; name the right one with item",
        ),
        (
            "a.jsonl",
            b'{"user": 1, "Item_ID": 2}\n',
            {},
            "a.jsonl has no column 'item'; it has 'user', 'Item_ID'; "
            "did you mean 'Item_ID'? name the right one with item",
        ),
        ("a.csv", b"user,item,user\n1,2,3\n", {}, "a.csv has 2 columns 'user'; rename one"),
        # records
        (
            "a.csv",
            b"user,item\n1,2\n\n1\n",
            {},
            "a.csv, line 4 has 1 column, 2 are in its header line; "
            "mend the line, or name all columns with columns",
        ),
        (
            "a.csv",
            b'user,item\n1,2\n1,"2\n1,2\n1,2\n',
            {},
            "a.csv, line 3: a quote in this record is not closed or not doubled "
            "(unexpected end of data); mend it",
        ),
        (
            "a.csv",
            b'user,item,title\n1,2,-\n1,2,"abc\n3,4,-\n5,6,"def\n7,8,-\n',
            {},
            "a.csv, line 3: a quote in this record is not closed or not doubled "
            "(',' expected after '\"'); mend it",
        ),
        (
            "a.tsv",
            b"1\t2\n1\t2\t3\n",
            {"columns": ["user", "item"]},
            "a.tsv, line 2 has 3 columns, 2 are expected (user, item); "
            "mend the line, or name all columns with columns",
        ),
        (
            "a.txt",
            b"1 2\n\n 1  2 3\n",
            {},
            "a.txt, line 3 has 3 columns, 2 are expected (user, item); "
            "mend the line, or name all columns with columns",
        ),
        (
            "a.jsonl",
            b'{"user": 1, "item": 2}\n{"user": 1, "item"\n',
            {},
            "a.jsonl, line 2 is not JSON (Expecting ':' delimiter: line 2 column 1 (char 19)); "
            "write one object a line",
        ),
        (
            "a.json",
            b'[{"user": 1, "item": 2}]',
            {},
            "a.json, line 1 is JSON but no object; write one object a line",
        ),
        (
            "a.jsonl",
            b'{"user": 1, "item": 2}\n\n{"user": "x", "item": 2}\n',
            {},
            "a.jsonl, line 3: column 'user' is a string, in earlier lines it is an integer; "
            "write one type in all lines",
        ),
        (
            "a.jsonl",
            b'{"user": 1, "item": 2}\n{"user": 123456789012345678901, "item": 2}\n',
            {},
            "a.jsonl, line 2: column 'user' is 123456789012345678901, which does not fit 64 bits; "
            "write it as a string",
        ),
        (
            "a.jsonl",
            b'{"user": 1.5, "item": 2}\n',
            {},
            "a.jsonl, line 1: column 'user' is 1.5; ids are integers or strings",
        ),
        # UTF-8
        (
            "a.csv",
            b'user,item\n"a\nb",2\n1,\xff\n',
            {},
            "a.csv, line 4: column 'item' is not valid UTF-8; convert the file",
        ),
        (
            "a.txt",
            b"1 2\n\xe9 2\n",
            {},
            "a.txt, line 2: column 'user' is not valid UTF-8; convert the file",
        ),
        (
            "a.jsonl",
            b'{"user": "a", "item": 2}\n{"user": "\xff", "item": 2}\n',
            {},
            "a.jsonl, line 2: column 'user' is not valid UTF-8; convert the file",
        ),
        # ids
        (
            "a.csv",
            b"user,item\n1,2\n,3\n",
            {},
            "a.csv, line 3: the user id in column 'user' is empty; drop the row or mend it",
        ),
        (
            "a.csv",
            b"item,user\na,2\n,3\n",
            {},
            "a.csv, line 3: the item id in column 'item' is empty; drop the row or mend it",
        ),
        (
            "a.csv",
            b"user,item\na\0b,2\n",
            {},
            "a.csv, line 2: the user id in column 'user' is one with a NUL byte; "
            "drop the row or mend it",
        ),
        (
            "a.txt",
            b"1 2\n1 " + b"x" * 1025 + b"\n",
            {},
            "a.txt, line 2: the item id in column 'item' is longer than 1024 bytes; "
            "drop the row or mend it",
        ),
        (
            "a.jsonl",
            b'{"user": 1, "item": 2}\n\n{"user": null, "item": 2}\n',
            {},
            "a.jsonl, line 3: the user id in column 'user' is missing; drop the row or mend it",
        ),
        (
            "a.jsonl",
            b'{"user": 1, "item": 2}\n{"user": 1}\n',
            {},
            "a.jsonl, line 2: the item id in column 'item' is missing; drop the row or mend it",
        ),
        (
            "a.csv",
            b"user,item,how\n1,2,\n",
            {"action": "how"},
            "a.csv, line 2: the action in column 'how' is empty; drop the row or mend it",
        ),
        # times
        (
            "a.csv",
            b"user,item,t\n1,2,5\n1,2,soon\n",
            TIMES,
            "a.csv, line 3: timestamp 'soon' in column 't' is not a number; "
            "mend it, or write all times in one way",
        ),
        (
            "a.csv",
            b"user,item,t\n1,2,yesterday\n",
            TIMES,
            "a.csv, line 2: timestamp 'yesterday' in column 't' is neither a number nor an "
            "ISO 8601 time",
        ),
        (
            "a.csv",
            b"user,item,t\n1,2,5\n1,2,\n",
            TIMES,
            "a.csv, line 3: timestamp '' in column 't' is not a number; "
            "mend it, or write all times in one way",
        ),
        (
            "a.csv",
            b"user,item,t\n1,2,5\n1,2,5.5\n",
            TIMES,
            "a.csv, line 3: timestamp '5.5' in column 't' is no whole number; "
            "write integers in timestamp_unit",
        ),
        (
            "a.csv",
            b"user,item,t\n1,2,5\n1,2,nan\n",
            TIMES,
            "a.csv, line 3: timestamp 'nan' in column 't' is no whole number; "
            "write integers in timestamp_unit",
        ),
        (
            "a.csv",
            b"user,item,t\n1,2,5\n1,2,9223372036854775808\n",
            TIMES,
            "a.csv, line 3: timestamp '9223372036854775808' in column 't' is no integer of 64 bits",
        ),
        (
            "a.csv",
            b"user,item,t\n1,2,2020-01-01\n1,2,2020-01-32\n",
            TIMES,
            "a.csv, line 3: timestamp '2020-01-32' in column 't' is no ISO 8601 time without a "
            "zone as before it; write all times in one way",
        ),
        (
            "a.csv",
            b"user,item,t\n1,2,2020-01-01T00:00Z\n1,2,2020-01-01T00:00\n",
            TIMES,
            "a.csv, line 3: timestamp '2020-01-01T00:00' in column 't' is no ISO 8601 time with a "
            "zone as before it; write all times in one way",
        ),
        (
            "a.csv",
            b"user,item,t\n1,2,2020-01-01\n1,2,2020-01-01T00:00:00.5\n",
            TIMES,
            "a.csv, line 3: timestamp '2020-01-01T00:00:00.5' in column 't' is no whole number of "
            "s; set timestamp_unit to a finer one",
        ),
        (
            "a.csv",
            b"user,item,t\n1,2,9999-01-01\n",
            {**TIMES, "timestamp_unit": "ns"},
            "a.csv, line 2: timestamp '9999-01-01' in column 't' does not fit 64 bits in ns; "
            "set timestamp_unit",
        ),
        (
            "a.jsonl",
            b'{"user":1,"item":2,"t":5}\n{"user":1,"item":2,"t":"6"}\n',
            TIMES,
            "a.jsonl, line 2: column 't' is a string, in earlier lines it is a number; "
            "write one type in all lines",
        ),
        (
            "a.jsonl",
            b'{"user":1,"item":2,"t":5}\n{"user":1,"item":2,"t":5.5}\n',
            TIMES,
            "a.jsonl, line 2: timestamp '5.5' in column 't' is no whole number; "
            "write integers in timestamp_unit",
        ),
        (
            "a.jsonl",
            b'{"user":1,"item":2,"t":5}\n{"user":1,"item":2,"t":1e17}\n',
            TIMES,
            "a.jsonl, line 2: timestamp '1e+17' in column 't' is a float too large to be exact; "
            "write it as an integer",
        ),
        (
            "a.jsonl",
            b'{"user":1,"item":2,"t":5}\n{"user":1,"item":2}\n',
            TIMES,
            "a.jsonl, line 2: the timestamp in column 't' is missing; drop the row or mend it",
        ),
        # ratings
        (
            "a.csv",
            b"user,item,r\n1,2,5\n1,2,good\n",
            RATINGS,
            "a.csv, line 3: rating 'good' in column 'r' is not a number; drop the row or mend it",
        ),
        (
            "a.csv",
            b"user,item,r\n1,2,nan\n",
            RATINGS,
            "a.csv, line 2: rating 'nan' in column 'r' is not a number; drop the row or mend it",
        ),
        # whole files
        ("a.csv", b"", {}, "input a.csv is empty; remove it or write it again"),
        (
            "a.csv",
            b"\n\n",
            {},
            "a.csv holds only blank lines, where a header line should be",
        ),
        (
            "a.csv",
            b"user,item\n",
            {},
            "no events in a.csv; check the columns ['user', 'item']",
        ),
        ("a.csv", b"user,item", {}, "no events in a.csv; check the columns ['user', 'item']"),
        ("a.txt", b"\n \n", {}, "no events in a.txt; check the columns ['user', 'item']"),
        (
            "a.jsonl",
            b"\n",
            {},
            "a.jsonl holds only blank lines, where JSON objects should be",
        ),
        (
            "a.log",
            b"1 2\n",
            {},
            "input a.log: its suffix names no format; set format to one of "
            "parquet, csv, tsv, jsonl, text",
        ),
        (
            "a.csv.gz",
            b"user,item\n1,2\n",
            {},
            "cannot read a.csv.gz: OSError: zlib inflate failed: incorrect header check",
        ),
        (
            "a.csv.gz",
            gzip.compress(b"user,item\n1,2\n", mtime=0)[:-9],
            {},
            "cannot read a.csv.gz: OSError: Truncated compressed stream",
        ),
    ],
    ids=short,
)
def test_bad_text(
    name: str, content: bytes, options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert failure(tmp_path / name, **options) == line
