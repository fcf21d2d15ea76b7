"""The hash of users and the codes of keys, against published values and plain Python."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prepare.keys import KeyColumn, NeedsStrings, failing, finalise, fnv1a, hash_keys
from pipeline.prepare.order import by_user_and_time, coded, coded_by_hash, stable_order
from tests.prepare.oracle import sort_key, stable_hash, typed


def test_published_values() -> None:
    # SplitMix64 seeded with 0 gives these; its state rises by the golden gamma.
    gamma = np.uint64(0x9E3779B97F4A7C15)
    states = np.arange(1, 4, dtype=np.uint64) * gamma
    assert finalise(states).tolist() == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    # Test vectors of the FNV reference distribution.
    assert fnv1a(pa.array(["", "a", "foobar"])).tolist() == [
        0xCBF29CE484222325,
        0xAF63DC4C8601EC8C,
        0x85944171F73967E8,
    ]


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_hash_of_integers(keys: list[int]) -> None:
    assert hash_keys(pa.array(keys, pa.int64())).tolist() == [stable_hash(key) for key in keys]


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=20), st.integers(0, 3))
def test_hash_of_strings(keys: list[str], skip: int) -> None:
    array = pa.array(keys, pa.string()).slice(skip)
    assert hash_keys(array).tolist() == [stable_hash(key) for key in keys[skip:]]


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from(["1", "2", "-7", "01", "é", "z", "日", "𝄞", "\uffff"]), min_size=1
        ),
        min_size=1,
    )
)
def test_codes_index_the_sorted_keys(batches: list[list[str]]) -> None:
    rows = typed([key for batch in batches for key in batch])
    strings = any(isinstance(row, str) for row in rows)
    column = KeyColumn("user", "c", strings)
    keys, codes = coded(pa.concat_arrays([column.typed(pa.array(each)) for each in batches]))
    # By UTF-8 bytes: not the order of UTF-16, in which U+1D11E comes before U+FFFF.
    assert keys.to_pylist() == sorted(set(rows), key=sort_key)
    assert [keys[code].as_py() for code in codes.tolist()] == rows


@pytest.mark.parametrize("batch", [["1", "x"], ["01"], ["+7"], [""], np.array([2**64 - 1])])
def test_what_is_no_integer_asks_for_strings(batch: Any) -> None:
    with pytest.raises(NeedsStrings):
        KeyColumn("item", "c", strings=False).typed(pa.array(batch))


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 50)))
def test_codes_of_integers(keys: list[int]) -> None:
    """Near together and far apart, which take different ways."""
    found, codes = coded(pa.array(keys, pa.int64()))
    assert found.to_pylist() == sorted(set(keys))
    assert [found[code].as_py() for code in codes.tolist()] == keys
    found, codes = coded_by_hash(pa.array(keys, pa.int64()))
    assert found.to_pylist() == sorted(set(keys), key=lambda key: (stable_hash(key), key))
    assert [found[code].as_py() for code in codes.tolist()] == keys


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 2, 65_535, 65_536, 200_000]), st.integers(-3, 3))))
def test_order_is_stable(rows: list[tuple[int, int]]) -> None:
    users = np.array([user for user, _ in rows], np.uint32)
    times = np.array([time for _, time in rows], np.int64)
    numbered = range(len(rows))
    assert stable_order(users, 200_001).tolist() == sorted(numbered, key=lambda n: rows[n][0])
    ordered = by_user_and_time(users, 200_001, times).tolist()
    assert ordered == sorted(numbered, key=lambda n: rows[n])


@pytest.mark.parametrize("most", [2**12, 3])
@given(texts=st.lists(st.sampled_from(["1", "2", "x"]), max_size=40))
def test_what_fails_is_found_by_halving(texts: list[str], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.prepare.keys._MOST_FAILING", most)
        found = failing(pa.array(texts, pa.string()), lambda part: part.cast(pa.int64()))
    assert found.tolist() == [row for row, text in enumerate(texts) if text == "x"][:most]
