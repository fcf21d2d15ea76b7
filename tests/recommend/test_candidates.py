"""Which items may be in a list, against plain Python; and every mistake in one line."""

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.recommend import read_candidates
from pipeline.recommend.candidates import parse_conditions
from tests.conftest import prepare_histories


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Items 10, 20, ... 300: keys are not ids."""
    histories = [[10 * i, 10 * (i % 30 + 1)] for i in range(1, 31)]
    return prepare_histories(histories, tmp_path_factory.mktemp("candidates"))


def table(**columns: Any) -> pa.Table:
    return pa.table(columns)


def write_text(path: Path, keys: list[Any]) -> str:
    path.write_text("".join(f"{key}\n" for key in keys))
    return str(path)


def keys_of(mask: torch.Tensor) -> list[int]:
    assert mask.shape == (31,)
    assert mask.dtype == torch.bool
    return [10 * item for item in mask.nonzero()[:, 0].tolist()]


OPERATORS = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
KEYS = st.sets(st.integers(1, 30).map(lambda i: 10 * i))
PRICES = st.one_of(st.none(), st.integers(0, 5))


@settings(max_examples=60)
@given(
    allow=st.none() | KEYS,
    deny=st.none() | KEYS,
    prices=st.lists(PRICES, min_size=30, max_size=30),
    order=st.permutations(range(30)),
    comparisons=st.lists(st.tuples(st.sampled_from([*OPERATORS]), st.integers(0, 5)), max_size=3),
    parquet=st.booleans(),
)
def test_all_filters_together(
    dataset: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
    allow: set[int] | None,
    deny: set[int] | None,
    prices: list[int | None],
    order: list[int],
    comparisons: list[tuple[str, int]],
    parquet: bool,
) -> None:
    folder = tmp_path_factory.mktemp("filters")
    given: dict[str, str] = {}
    for name, keys in (("allow", allow), ("deny", deny)):
        if keys is None:
            continue
        given[name] = write_text(folder / name, sorted(keys, reverse=True))
        if parquet:
            pq.write_table(table(item=pa.array(sorted(keys), pa.int32())), given[name])
    if comparisons:
        given["items"] = str(folder / "items.parquet")
        # Rows in any order, and items that the data set does not have.
        keys = [10 * (i + 1) for i in order] + [7, 8]
        shown = [prices[i] for i in order] + [1, 1]
        pq.write_table(table(key=keys, price=pa.array(shown, pa.int16())), given["items"])
        given["where"] = " and ".join(f"price {name} {value}" for name, value in comparisons)
    expected = [
        key
        for key, price in zip(range(10, 310, 10), prices, strict=True)
        if (allow is None or key in allow)
        and key not in (deny or ())
        and all(price is not None and OPERATORS[name](price, v) for name, v in comparisons)
    ]
    if not given:
        assert read_candidates(dataset) is None
    elif not expected:
        with pytest.raises(LonghaulError, match="no item is left to recommend of the 30 in"):
            read_candidates(dataset, **given)
    else:
        found = read_candidates(dataset, **given)
        assert found is not None
        assert keys_of(found.mask()) == expected
        assert found.chosen.count == len(expected)


def test_string_keys(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item\n" + "".join(f"u{n},{k}\n" for n in range(3) for k in "abcé"))
    from pipeline.manifest import open_dataset
    from pipeline.prepare import PrepareOptions, prepare

    prepare(PrepareOptions(inputs=[str(log)], output=str(tmp_path / "set")))
    dataset = open_dataset(str(tmp_path / "set"))
    (tmp_path / "allow.txt").write_text("é\r\n\n b \n", encoding="utf-8")
    found = read_candidates(dataset, allow=str(tmp_path / "allow.txt"))
    assert found is not None
    assert found.mask().nonzero()[:, 0].tolist() == [2, 4]
    with pytest.raises(LonghaulError, match=r"1 of its 2 keys are no items of .*, as 'x y'"):
        read_candidates(dataset, deny=write_text(tmp_path / "deny.txt", ["a", "x y"]))


SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("price", pa.float64()),
        ("category", pa.dictionary(pa.int32(), pa.string())),
        ("on sale", pa.bool_()),
        ("since", pa.date32()),
        ("tags", pa.list_(pa.string())),
    ]
)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("price<20", [("price", "<", 20.0)]),
        (" price >= 1e1 and on sale = true ", [("price", ">=", 10.0), ("on sale", "=", True)]),
        ("category=rock and roll", None),
        ("category='rock and roll'", [("category", "=", "rock and roll")]),
        ('category!="a=b" and price==3', [("category", "!=", "a=b"), ("price", "==", 3.0)]),
        ("category=sand and price>1", [("category", "=", "sand"), ("price", ">", 1.0)]),
        ("category=L'Oreal", [("category", "=", "L'Oreal")]),
        ("category=''", [("category", "=", "")]),
        ("since<2026-01-31", [("since", "<", datetime.date(2026, 1, 31))]),
    ],
)
def test_conditions(where: str, expected: list[tuple[str, str, Any]] | None) -> None:
    if expected is None:
        with pytest.raises(LonghaulError, match="'roll' is not of the form COLUMN=VALUE"):
            parse_conditions(where, SCHEMA, "items.parquet")
        return
    found = parse_conditions(where, SCHEMA, "items.parquet")
    assert [(c.column, c.operator, c.value.as_py()) for c in found] == expected


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("prise<20", "items.parquet has no column 'prise'; did you mean 'price'?"),
        ("price<cheap", "column 'price' of items.parquet holds double, which cannot be compared"),
        ("tags=a", "column 'tags' of items.parquet holds list<.*>, which cannot be compared"),
        ("price", "'price' is not of the form COLUMN=VALUE"),
        ("price<20 or price>3", "is not of the form COLUMN=VALUE"),
        ("price<20 and", "is not of the form COLUMN=VALUE"),
        ("category=sand and", "is not of the form COLUMN=VALUE"),
        ("category=a or b", "is not of the form COLUMN=VALUE"),
        ("category='a' b", "is not of the form COLUMN=VALUE"),
        ("", "is not of the form COLUMN=VALUE"),
    ],
)
def test_conditions_that_are_refused(where: str, told: str) -> None:
    with pytest.raises(LonghaulError, match=told) as refused:
        parse_conditions(where, SCHEMA, "items.parquet")
    assert "\n" not in str(refused.value)


def test_what_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    def refuse(told: str, **given: str) -> None:
        with pytest.raises(LonghaulError, match=told) as refused:
            read_candidates(dataset, **given)
        assert "\n" not in str(refused.value)

    some = write_text(tmp_path / "some.txt", [10, 11, 12, 20])
    refuse("some.txt: 2 of its 4 keys are no items of .*, as '11'", allow=some)
    refuse("some.txt: 2 of its 4 keys are no items", deny=some)
    refuse("the items of .* are int64: .*'x'", deny=write_text(tmp_path / "x.txt", ["x"]))
    refuse("no item is left", deny=write_text(tmp_path / "all.txt", [10 * i for i in range(1, 31)]))
    refuse("absent.txt: it does not exist", allow=str(tmp_path / "absent.txt"))
    refuse("give both, or none", items=some)
    refuse("give both, or none", where="price<2")
    refuse("some.txt is no Parquet file", items=some, where="price<2")
    whole = {"key": [10 * i for i in range(1, 31)], "price": list(range(30))}
    places = {
        "short": {name: column[:-2] for name, column in whole.items()},
        "twice": {name: [*column, column[4]] for name, column in whole.items()},
        "nameless": {"sku": whole["key"], "price": whole["price"]},
    }
    for name, columns in places.items():
        pq.write_table(table(**columns), tmp_path / f"{name}.parquet")
        told = {
            "short": "lacks 2 of the 30 items of .*, as 290: whether they meet 'price<2'",
            "twice": "item 50 is there twice",
            "nameless": "has no column 'key' or 'item' .*; there are: sku, price",
        }[name]
        refuse(told, items=str(tmp_path / f"{name}.parquet"), where="price<2")
