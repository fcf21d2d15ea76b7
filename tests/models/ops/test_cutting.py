"""Segments against slices of a list."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.ops.cutting import cpu, reference
from models.ops.extension import library


@pytest.mark.parametrize("form", ["compiled", "reference"])
@given(data=st.data())
def test_segments_are_slices(form: str, data: st.DataObject) -> None:
    if form == "compiled" and library() is None:
        pytest.skip("no C++ compiler")
    events = data.draw(st.lists(st.integers(1, 2**32 - 1), min_size=1, max_size=60))
    segments = []
    for _ in range(data.draw(st.integers(0, 8))):
        bos = data.draw(st.booleans())
        begin = data.draw(st.integers(0 if bos else 1, len(events)))
        segments.append((begin, data.draw(st.integers(0, len(events) - begin)), bos))
    begins, lengths, firsts = zip(*segments, strict=True) if segments else ((), (), ())
    items, targets = (cpu if form == "compiled" else reference).cut(
        torch.tensor(events, dtype=torch.uint32),
        torch.tensor(begins, dtype=torch.int64),
        torch.tensor(lengths, dtype=torch.int64),
        torch.tensor(firsts, dtype=torch.bool),
    )
    expected: list[int] = []
    for begin, length, bos in segments:
        inputs = events[begin - 1 : begin - 1 + length] if begin else [0, *events[: length - 1]]
        expected += ([0, *inputs[1:]] if bos else inputs)[:length]
    assert items.tolist() == expected
    assert targets.tolist() == [e for b, n, _ in segments for e in events[b : b + n]]
