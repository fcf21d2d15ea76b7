"""Rows by number and their sums by number: every form against a product with zeros and ones."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_forms import assert_matches, form, threads

from models import ops
from models.ops.lookup import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def skewed(count: int, rows: int) -> torch.Tensor:
    """Places of which the first has half, the others ever fewer, most none."""
    chance = torch.rand(count, generator=torch.Generator().manual_seed(count))
    return ((chance * 2 - 1).clamp(min=0).pow(3) * rows).long()


@pytest.fixture(params=["eager", "triton"], autouse=True)
def device(request):
    """The device of the form under test, which is in use meanwhile."""
    with form(request.param) as device:
        yield device


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (1,), (7, 9), (90,)])
@pytest.mark.parametrize("width", [1, 70])
def test_lookup(shape, width, dtype, device):
    places = skewed(torch.Size(shape).numel(), 40).view(shape).to(device)
    assert_matches(
        lambda table: ops.lookup(table, places),
        lambda table: reference.lookup(table, places),
        [normal(40, width, dtype=dtype).to(device)],
    )


@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(places=st.lists(st.integers(-1, 6), max_size=140), pad=st.integers(0, 100))
def test_row_sums(device, places, pad):
    # Runs that begin, end and go on anywhere in a chunk of 32; -1 takes no part.
    places = torch.tensor([*places, *[3] * pad], dtype=torch.int64, device=device)
    values = normal(len(places), 5).to(device)
    found = ops.row_sums(values, places, 8)
    want = reference.row_sums(values.double(), places, 8)
    assert (found - want).abs().max() < 1e-5
    assert found.dtype == torch.float32


def test_the_sum_of_a_place_is_wide_and_in_one_order(device):
    # A bf16 sum would stand still at 128; one place has many chunks.
    values = torch.full((600, 3), 0.5, dtype=torch.bfloat16, device=device)
    places = torch.zeros(600, dtype=torch.int64, device=device)
    places[100:110] = 1
    assert ops.row_sums(values, places, 2)[:, 0].tolist() == [295.0, 5.0]


@pytest.mark.parametrize("device", ["eager"], indirect=True)
def test_the_same_bits_whatever_the_threads(device):
    values, places = normal(3000, 40).to(device), skewed(3000, 50).to(device)
    sums = []
    for count in (1, 2, 5):
        with threads(count):
            sums.append(ops.row_sums(values, places, 50))
    assert all(torch.equal(sums[0], again) for again in sums)


def test_what_does_not_fit_is_refused(device):
    table, places = normal(4, 3).to(device), torch.zeros(2, dtype=torch.int64, device=device)
    for refused in (
        lambda: ops.lookup(table[0], places),
        lambda: ops.lookup(table, places.int()),
        lambda: ops.row_sums(table, places, 4),
        lambda: ops.row_sums(table[:2], places.int(), 4),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            refused()
