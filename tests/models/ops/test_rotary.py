"""Rotary positions against the same in complex numbers, and the positions themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_forms import assert_matches

from models import ops

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
LAYOUTS = [[], [0], [1], [1, 1, 1], [0, 5, 1, 17, 0, 64, 2, 0], [290, 1, 260, 3]]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def rotate_by_complex_numbers(x, positions, base):
    pairs = x.shape[1] // 2
    speed = base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    factor = torch.polar(torch.ones(1, dtype=torch.float64), positions[:, None] * speed)
    turned = torch.view_as_complex(x.unflatten(1, (-1, 2))) * factor
    return torch.view_as_real(turned).flatten(1)


def assert_agrees(x, positions, base=10000.0):
    assert_matches(
        lambda x: ops.rotate(x, positions, base),
        lambda x: rotate_by_complex_numbers(x, positions, base),
        [x],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LAYOUTS)
@pytest.mark.parametrize("width", [2, 6, 64])
def test_rotate(width, lengths, dtype):
    positions = torch.cat([torch.arange(length) for length in [0, *lengths]])
    assert_agrees(normal(len(positions), width, dtype=dtype), positions)


@settings(max_examples=25, deadline=None)
@given(
    positions=st.lists(st.integers(-(10**6), 10**6), max_size=20),
    pairs=st.integers(1, 40),
    base=st.floats(1.5, 1e6),
)
def test_rotate_at_positions_of_any_size(positions, pairs, base):
    positions = torch.tensor(positions, dtype=torch.int64)
    assert_agrees(normal(len(positions), 2 * pairs), positions, base)


def test_products_of_rotated_rows_depend_on_the_distance_only():
    q, k = normal(1, 32, dtype=torch.float64), normal(2, 32, dtype=torch.float64)[:1]

    def product(here, there):
        turned = [ops.rotate(x, torch.tensor([at])) for x, at in ((q, here), (k, there))]
        return (turned[0] * turned[1]).sum()

    assert torch.allclose(product(7, 3), product(1007, 1003))
    assert not torch.allclose(product(7, 3), product(7, 4))


X, POSITIONS = torch.ones(4, 6), torch.arange(4)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.rotate(X[:, :5], POSITIONS),
        lambda: ops.rotate(X[0], POSITIONS),
        lambda: ops.rotate(X, POSITIONS[:3]),
        lambda: ops.rotate(X, POSITIONS.float()),
        lambda: ops.rotate(X, POSITIONS, 0.0),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        call()
