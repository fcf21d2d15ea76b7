"""The product-key memory: every form against brute force, its read, and what it refuses."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_forms import assert_matches, evaluate, form

from models import ops
from models.ops import product_keys
from models.ops.product_keys import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


@pytest.fixture(params=["compiled", "eager"])
def device(request):
    """The device of the form under test, which is in use meanwhile."""
    with form(request.param) as device:
        yield device


every_form = pytest.mark.parametrize("device", ["compiled", "eager", "triton"], indirect=True)


def whole_numbers(*shape: int, most: int = 2) -> torch.Tensor:
    """Small ones: sums of their products are exact in any dtype, and many are equal."""
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-most, most + 1, shape, generator=random).float()


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@every_form
@pytest.mark.parametrize(("n", "k"), [(1, 1), (9, 1), (9, 4), (8, 8)])
def test_ties_are_broken_as_by_brute_force(n, k, device):
    query, keys = whole_numbers(3, 2, 6).to(device), whole_numbers(2, 2, n, 3).to(device)
    scores, slots = ops.product_key_top(query, keys, k)
    expected_scores, expected_slots = reference.top(query, keys, k)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(slots, expected_slots)


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    tokens=st.integers(0, 9),
    heads=st.integers(1, 3),
    n=st.integers(1, 20),
    width=st.integers(1, 4),
    most=st.integers(0, 5),
    data=st.data(),
)
def test_whole_numbers_equal_brute_force(device, tokens, heads, n, width, most, data):
    k = data.draw(st.integers(1, n))
    query = whole_numbers(tokens, heads, 2 * width, most=most)
    keys = whole_numbers(heads, 2, n, width, most=most)
    scores, slots = ops.product_key_top(query, keys, k)
    expected_scores, expected_slots = reference.top(query, keys, k)
    assert torch.equal(scores, expected_scores)
    assert torch.equal(slots, expected_slots)


@every_form
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_and_gradients_equal_brute_force(dtype, device):
    query, keys = normal(4, 2, 16, dtype=dtype), normal(2, 2, 30, 8, dtype=dtype)
    inputs = [query.to(device), keys.to(device)]
    assert_matches(
        lambda q, keys: ops.product_key_top(q, keys, 5)[0],
        lambda q, keys: reference.top(q, keys, 5)[0],
        inputs,
    )
    exact = reference.top(*(x.double() for x in inputs), 5)[1]
    assert torch.equal(ops.product_key_top(*inputs, 5)[1], exact)


def test_many_queries_equal_brute_force(device):
    query, keys = normal(300, 3, 32), normal(3, 2, 40, 16)
    assert_matches(
        lambda q, keys: ops.product_key_top(q, keys, 32)[0],
        lambda q, keys: reference.top(q, keys, 32)[0],
        [query, keys],
        slack=4,  # a gradient of the keys is a sum over some hundred reads
    )


@every_form
def test_sums_made_equal_by_rounding_are_broken_alike(device):
    # At 2^24 halves of whole numbers are lost in a sum.
    halves = whole_numbers(6, 2, 2, 12, most=8) / 2
    halves[:, :, 1] += 2.0**24
    expected = product_keys.eager.select(halves, 6)
    assert torch.equal(product_keys.select(halves.to(device), 6).cpu(), expected)


@every_form
def test_slots_exist_even_for_queries_that_are_no_numbers(device):
    query = torch.full((2, 1, 4), float("nan"), device=device)
    scores, slots = ops.product_key_top(query, normal(1, 2, 5, 2).to(device), 3)
    assert scores.isnan().all()
    assert ((slots >= 0) & (slots < 25)).all()


def test_no_tokens(device):
    inputs = [torch.ones(0, 2, 6), torch.ones(2, 2, 5, 3)]
    top, dquery, dkeys = evaluate(lambda q, keys: ops.product_key_top(q, keys, 3)[0], inputs)
    assert top.shape == (0, 2, 3)
    assert dquery.shape == (0, 2, 6)
    assert (dkeys == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (40, 12)])
def test_memory_read(shape, dtype):
    slots = torch.randint(0, 25, shape, generator=torch.Generator().manual_seed(0))
    assert_matches(
        lambda weights, table: ops.memory_read(weights, slots, table),
        lambda weights, table: reference.read(weights, slots, table),
        [normal(*shape, dtype=dtype), normal(25, 8, dtype=dtype)],
        slack=2,  # torch adds up a row's gradient in the table's own dtype
    )


QUERY, KEYS = torch.ones(4, 2, 6), torch.ones(2, 2, 5, 3)
WEIGHTS, SLOTS, TABLE = torch.ones(4, 3), torch.zeros(4, 3).long(), torch.ones(25, 6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.product_key_top(QUERY[0], KEYS, 2),
        lambda: ops.product_key_top(QUERY[..., :5], KEYS, 2),
        lambda: ops.product_key_top(QUERY, KEYS[0], 2),
        lambda: ops.product_key_top(QUERY, KEYS[:1], 2),
        lambda: ops.product_key_top(QUERY, KEYS[..., :2], 2),
        lambda: ops.product_key_top(QUERY, KEYS, 0),
        lambda: ops.product_key_top(QUERY, KEYS, 6),
        lambda: ops.memory_read(WEIGHTS[0], SLOTS[0], TABLE),
        lambda: ops.memory_read(WEIGHTS, SLOTS[:2], TABLE),
        lambda: ops.memory_read(WEIGHTS, SLOTS.int(), TABLE),
        lambda: ops.memory_read(WEIGHTS, SLOTS, TABLE[0]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        call()
