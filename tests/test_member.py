"""A member goes to bytes and back, in any number of threads at once."""

import gc
import io
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LonghaulError
from pipeline.member import Head, Member, decode_head, decode_member, encode_member


def member(lengths: list[int], strings: bool = False, timed: bool = False) -> Member:
    """A member of users with histories of these lengths."""
    total = sum(lengths)
    users = np.arange(len(lengths), dtype=np.int64)
    return Member(
        items=np.arange(1, total + 1, dtype=np.uint32),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.uint64),
        users=np.char.encode(users.astype(str)) if strings else users,
        splits=np.tile(np.array(lengths, np.uint32)[:, None], 4),
        timestamps=np.arange(total, dtype=np.int64) if timed else None,
        actions=np.zeros(total, np.uint8) if timed else None,
    )


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.booleans(), st.booleans())
def test_what_is_written_is_read(lengths: list[int], strings: bool, timed: bool) -> None:
    written = member(lengths, strings, timed)
    read = decode_member(encode_member("000000", written)[0], "a member")
    for name in ("items", "offsets", "users", "splits", "timestamps", "actions"):
        before, after = getattr(written, name), getattr(read, name)
        if before is None:
            assert after is None
        else:
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, before)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.booleans())
def test_the_head_is_read_alone(lengths: list[int], timed: bool) -> None:
    written = member(lengths, timed=timed)
    content, head = encode_member("000000", written)
    read = decode_head(content[:head], "a member")
    assert type(read) is Head
    for name in ("items", "offsets", "splits"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert read.lengths().tolist() == lengths


class Cycle:
    """Garbage whose collection lets another thread run in the middle of what this one does."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        time.sleep(0)


def test_threads_decode_at_once_while_garbage_is_collected() -> None:
    """numpy's own reader of headers fails here once in some thousand times (CPython 106905)."""
    content, _ = encode_member("000000", member([3, 1, 2], timed=True))

    def decode_many() -> None:
        for _ in range(1000):
            Cycle()
            assert len(decode_member(content, "a member")) == 3

    before = gc.get_threshold()
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(decode_many) for _ in range(4)]:
                done.result()
    finally:
        gc.set_threshold(*before)


@pytest.mark.parametrize(
    "values", [np.zeros((2, 3), order="F"), np.array([1j]), np.array([None], dtype=object)]
)
def test_a_foreign_array_is_refused(values: np.ndarray) -> None:
    array, archive = io.BytesIO(), io.BytesIO()
    np.save(array, values)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("000000.items.npy")
        entry.size = len(array.getvalue())
        tar.addfile(entry, io.BytesIO(array.getvalue()))
    with pytest.raises(LonghaulError, match=r"a member is not a longhaul member: .* no header"):
        decode_member(archive.getvalue(), "a member")
