"""Windows of histories against a plain loop that says what each rule means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stream.segments import Window, cut


def by_hand(n: int, window: Window) -> set[tuple[int, int, bool]]:
    """(start, stop, bos) of every segment of one history of ``n`` training events."""
    first, size = (0 if window.bos else 1), window.length
    if n <= first:
        return set()
    if window.rule == "last":
        start = max(first, n - size)
        return {(start, n, start == 0)}
    if window.rule == "prefixes":
        starts = {stop: max(first, stop - size) for stop in range(first + 1, n + 1)}
        return {(start, stop, start == 0) for stop, start in starts.items()}
    if window.rule == "tiles":
        found, stop = set(), n
        while stop > first:
            start = max(first, stop - size)
            found.add((start, stop, start == 0))
            stop = start
        return found
    if n < 2 * size:
        start = max(first, n - size)
        return {(start, n, start == 0)}
    return {
        (i + first, i + size, window.bos)
        for i in range(n - size, -1, -size)
        if i + first < i + size
    }


@given(
    lengths=st.lists(st.integers(0, 50), max_size=20),
    rule=st.sampled_from(["tiles", "last", "prefixes", "lrurec"]),
    length=st.integers(1, 12),
    bos=st.booleans(),
)
def test_cut_agrees_with_the_loop(lengths: list[int], rule: str, length: int, bos: bool) -> None:
    window = Window(rule=rule, length=length, bos=bos)
    found = cut(np.array(lengths, dtype=np.int64), window)
    for user, n in enumerate(lengths):
        mine = found.user == user
        segments = set(
            zip(
                found.start[mine].tolist(),
                found.stop[mine].tolist(),
                found.bos[mine].tolist(),
                strict=True,
            )
        )
        assert segments == by_hand(n, window)
        assert mine.sum() == len(segments)
    assert found.lengths().sum() == sum(b - a for n in lengths for a, b, _ in by_hand(n, window))


@pytest.mark.parametrize(("bos", "first"), [(True, 0), (False, 1)])
def test_tiles_train_every_target_exactly_once(bos: bool, first: int) -> None:
    found = cut(np.arange(100), Window(rule="tiles", length=7, bos=bos))
    for user in range(100):
        mine = np.flatnonzero(found.user == user)
        targets = [t for s in mine for t in range(found.start[s], found.stop[s])]
        assert sorted(targets) == list(range(first, user))
        assert all(found.lengths()[mine] <= 7)


def test_a_single_event_is_trained_only_from_an_empty_history() -> None:
    assert len(cut(np.array([1]), Window(length=5))) == 0
    assert len(cut(np.array([1]), Window(length=5, bos=True))) == 1
