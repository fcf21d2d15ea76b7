"""Segments against slices of a list."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.ops.cutting import Events, cpu, reference
from models.ops.extension import library


@pytest.mark.parametrize("form", ["compiled", "reference"])
@given(data=st.data())
def test_segments_are_slices(form: str, data: st.DataObject) -> None:
    if form == "compiled" and library() is None:
        pytest.skip("no C++ compiler")
    lists = data.draw(
        st.lists(
            st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=60), min_size=1, max_size=3
        )
    )
    segments = []
    for _ in range(data.draw(st.integers(0, 8))):
        array = data.draw(st.integers(0, len(lists) - 1))
        bos = data.draw(st.booleans())
        begin = data.draw(st.integers(0 if bos else 1, len(lists[array])))
        length = data.draw(st.integers(0, len(lists[array]) - begin))
        segments.append((array, begin, length, bos))
    columns = list(zip(*segments, strict=True)) or [(), (), (), ()]
    events = Events([np.array(events, np.uint32) for events in lists])
    items, targets = (cpu if form == "compiled" else reference).cut(
        events,
        *(np.array(column, np.int64) for column in columns[:3]),
        np.array(columns[3], np.bool_),
    )
    expected: list[int] = []
    for array, begin, length, bos in segments:
        held = lists[array]
        inputs = held[begin - 1 : begin - 1 + length] if begin else [0, *held[: length - 1]]
        expected += ([0, *inputs[1:]] if bos else inputs)[:length]
    assert items.tolist() == expected
    assert targets.tolist() == [e for a, b, n, _ in segments for e in lists[a][b : b + n]]
