"""Objectives: what is asked, what may be seen, and that chance depends on nothing but the seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.manifest import Dataset
from pipeline.stream.lane import Fill
from pipeline.stream.objective import Objective
from pipeline.stream.segments import Window
from pipeline.stream.stream import Stream, StreamConfig


def fill_of(histories: list[list[int]], first_identity: int = 0) -> Fill:
    """What a lane gives for whole histories with ``bos``: inputs one place behind the targets."""
    lengths = [len(history) for history in histories]
    return Fill(
        items=np.array([item for h in histories for item in [0, *h[:-1]]], dtype=np.int64),
        targets=np.array([item for h in histories for item in h], dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        identity=np.arange(first_identity, first_identity + len(histories), dtype=np.uint64),
        asked=sum(lengths),
    )


CLOZE = Objective(name="cloze", mask_probability=0.3)


def test_next_item_changes_nothing() -> None:
    fill = fill_of([[5, 6, 7]])
    assert Objective().apply(fill, 1) is fill


def test_last_item_asks_once_a_segment() -> None:
    fill = fill_of([[5, 6, 7], [8], [9, 3]])
    asked = Objective(name="last_item").apply(fill, 1)
    np.testing.assert_array_equal(asked.items, fill.items)
    np.testing.assert_array_equal(asked.targets, [0, 0, 7, 8, 0, 3])


@given(
    st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=30), min_size=1, max_size=10),
    st.integers(0, 2**63 - 1),
)
def test_cloze_hides_what_it_asks_and_shows_the_rest(histories: list[list[int]], seed: int) -> None:
    fill = fill_of(histories)
    asked = CLOZE.apply(fill, seed)
    hidden = asked.items == 0
    np.testing.assert_array_equal(asked.targets > 0, hidden)
    np.testing.assert_array_equal(np.where(hidden, asked.targets, asked.items), fill.targets)
    np.testing.assert_array_equal(asked.offsets, fill.offsets)
    # Every segment is asked for something.
    assert (np.add.reduceat(hidden, fill.offsets[:-1]) > 0).all()


def test_cloze_masks_the_share_it_is_told_independently() -> None:
    fill = fill_of([[1] * 200] * 500)
    hidden = (CLOZE.apply(fill, 7).items == 0).reshape(500, 200)
    assert abs(hidden.mean() - 0.3) < 4 * (0.21 / hidden.size) ** 0.5
    assert abs(hidden.mean(0) - 0.3).max() < 5 * (0.21 / 500) ** 0.5
    assert abs(hidden.mean(1) - 0.3).max() < 5 * (0.21 / 200) ** 0.5
    correlation = np.corrcoef(hidden[:, :-1].ravel(), hidden[:, 1:].ravel())[0, 1]
    assert abs(correlation) < 4 / hidden.size**0.5
    other = (CLOZE.apply(fill, 8).items == 0).reshape(500, 200)
    assert abs((other & hidden).mean() - 0.09) < 4 * (0.09 / hidden.size) ** 0.5


def test_a_segment_is_masked_alike_wherever_it_lies() -> None:
    histories = [[1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    together = CLOZE.apply(fill_of(histories), 3)
    second = CLOZE.apply(fill_of(histories[1:2], first_identity=1), 3)
    np.testing.assert_array_equal(together.items[4:9], second.items)


def test_a_share_of_segments_is_asked_for_the_last_item_alone() -> None:
    fill = fill_of([[1] * 50] * 2000)
    objective = Objective(name="cloze", mask_probability=0.3, last_only=0.25)
    hidden = (objective.apply(fill, 5).items == 0).reshape(2000, 50)
    alone = (hidden.sum(1) == 1) & hidden[:, -1]
    assert abs(alone.mean() - 0.25) < 4 * (0.19 / 2000) ** 0.5


@pytest.mark.parametrize("objective", [Objective(name="last_item"), CLOZE])
def test_a_stream_counts_what_is_asked_and_epochs_differ(
    small_set: Dataset, objective: Objective
) -> None:
    config = StreamConfig(window=Window(length=16, bos=True), lane_tokens=128, shuffle_members=8)
    stream = Stream(small_set, config, seed=5, rank=0, world_size=1, objective=objective)
    epochs = []
    for epoch in (0, 1, 0):
        stream.start(epoch)
        asked: list[int] = []
        while (step := stream.next_step()).segments:
            batch = step.micro[0].batch
            assert step.targets == int(batch.target_mask.sum()) > 0
            asked.append(step.targets)
        epochs.append(asked)
    stream.close()
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "cloze"}, "mask_probability goes with objective cloze: give both or neither"),
        ({"mask_probability": 0.2}, "mask_probability goes with objective cloze"),
        ({"last_only": 0.2}, "last_only goes with objective cloze"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Objective(**settings)
