"""Counting in tiles of scores, in every form, against counting one by one."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_forms import form, has_compiler

from models import ops

SPECIAL = [0.0, -0.0, 1.5, -1.5, math.inf, -math.inf, math.nan, 3.4e38]


@pytest.fixture(params=["compiled", "eager"])
def counting(request):
    if request.param == "compiled" and not has_compiler():
        pytest.skip("no C++ compiler")
    with form(request.param):
        yield


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_counts_are_those_by_hand(dtype, data):
    n, width, pairs = (data.draw(st.integers(1, most)) for most in (5, 40, 12))
    number = st.sampled_from(SPECIAL)
    x = [data.draw(st.lists(number, min_size=width, max_size=width)) for _ in range(n)]
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=pairs, max_size=pairs))
    goals = data.draw(st.lists(number, min_size=pairs, max_size=pairs))
    above, reached = ops.count_reaching(
        torch.tensor(x, dtype=dtype), torch.tensor(rows), torch.tensor(goals, dtype=dtype)
    )
    assert above.dtype == reached.dtype == torch.int64
    assert above.tolist() == [sum(v > g for v in x[r]) for r, g in zip(rows, goals, strict=True)]
    assert reached.tolist() == [sum(v >= g for v in x[r]) for r, g in zip(rows, goals, strict=True)]


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_health_is_lost_with_any_number_that_is_not_finite(dtype, bad):
    x = torch.randn(7, 1000, dtype=dtype, generator=torch.Generator().manual_seed(0))
    x[2, 999] = x[5, 0] = bad
    health = torch.zeros(7, dtype=dtype)
    ops.add_health(torch.ones_like(x), health)
    ops.add_health(x, health)
    ops.add_health(torch.ones_like(x), health)
    assert torch.isfinite(health).tolist() == [True, True, False, True, True, False, True]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"a goal a row in torch\.float32"):
        ops.count_reaching(torch.zeros(2, 3), torch.tensor([1]), torch.zeros(1).double())
