"""The hash of users and the codes of keys, against published values and plain Python."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prepare.keys import KeyColumn, finalise, fnv1a, hash_keys
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
    column = KeyColumn("c", "user id")
    for batch in batches:
        column.add(pa.array(batch), typed=False, place=str)
    keys, codes = column.finish()
    rows = typed([key for batch in batches for key in batch])
    # By UTF-8 bytes: not the order of UTF-16, in which U+1D11E comes before U+FFFF.
    assert keys.to_pylist() == sorted(set(rows), key=sort_key)
    assert [keys[code].as_py() for code in codes.tolist()] == rows
