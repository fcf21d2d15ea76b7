"""Which shard and member a user falls into, for any lengths."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prepare import layout
from pipeline.prepare.layout import cut_members, shard_count, shard_of, users_per_member


@pytest.mark.parametrize(
    ("events", "width", "target", "count"),
    [(0, 4, 100, 1), (25, 4, 100, 1), (26, 4, 100, 2), (10**10, 12, 2**27, 895)],
)
def test_shard_count(events: int, width: int, target: int, count: int) -> None:
    assert shard_count(events, width, target) == count


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1), st.integers(1, 2**31 - 1))
def test_shards_are_equal_ranges_of_the_hash(hashes: list[int], shards: int) -> None:
    found = shard_of(np.array(hashes, np.uint64), shards)
    assert found.tolist() == [value * shards >> 64 for value in hashes]


lengths_of_users = st.one_of(
    st.lists(st.integers(1, 50), min_size=1, max_size=300),
    st.lists(st.integers(1, 2_500_000), min_size=1, max_size=300),
    # one user has nearly everything
    st.builds(lambda tail, head: [*tail, head], st.lists(st.just(1)), st.integers(1, 10**9)),
)


@settings(deadline=None)
@given(lengths=lengths_of_users, most_users=st.integers(1, 60))
def test_members_hold_every_user_once_and_not_too_much(lengths: list[int], most_users: int) -> None:
    bounds = cut_members(np.array(lengths), most_users).tolist()
    assert (bounds[0], bounds[-1]) == (0, len(lengths))
    for first, last in pairwise(bounds):
        assert first < last <= first + most_users
        assert last == first + 1 or sum(lengths[first:last]) <= layout.MOST_EVENTS


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    users=st.integers(1, 12_000),
    skew=st.floats(0.5, 6),
    shards=st.integers(1, 40),
)
def test_at_least_a_thousand_members_where_there_are_as_many_users(
    seed: int, users: int, skew: float, shards: int
) -> None:
    """However skewed the lengths are, and wherever the edges of the shards fall."""
    random = np.random.default_rng(seed)
    lengths = np.minimum(random.pareto(1 / skew, users) + 1, 3e6).astype(np.int64)
    edges = np.sort(random.integers(0, users + 1, shards - 1))
    most_users = users_per_member(users)
    members = sum(len(cut_members(part, most_users)) - 1 for part in np.split(lengths, edges))
    assert members >= min(1000, users)
    # And not needlessly many: full members, and one that is not at the end of each shard.
    assert members <= users / most_users + 2 * lengths.sum() / layout.MOST_EVENTS + shards


def test_a_member_may_be_exactly_full() -> None:
    half = layout.MOST_EVENTS // 2
    assert cut_members(np.array([half, half, 1, half, half]), 9).tolist() == [0, 2, 4, 5]
    assert cut_members(np.array([half, half + 1, 1]), 9).tolist() == [0, 1, 3]


def test_no_users_no_members() -> None:
    assert cut_members(np.array([], np.int64), 5).tolist() == [0]
