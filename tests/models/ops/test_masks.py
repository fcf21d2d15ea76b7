"""The dropout masks: known answers, the same bits from both forms, chance and independence."""

import pytest
import torch
from op_forms import compiled, threads, triton

from models.ops import dropout, masks
from models.ops.masks import reference


@pytest.mark.parametrize(
    ("rounds", "words"),
    [
        (7, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        (10, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ],
)
def test_philox_gives_the_published_words(rounds, words):
    zero = torch.zeros(1, dtype=torch.int64)
    assert tuple(int(word) for word in reference.philox(zero, zero[0], rounds)) == words


@pytest.mark.parametrize("count", [1, 7, 64, 65, 1000, 4096])
@pytest.mark.parametrize("p", [1e-4, 0.2, 0.5, 0.999])
def test_all_forms_draw_the_same_bits(count, p):
    x = torch.ones(count)
    for value in (0, 1, 2**62 + 12345, -1):
        seed = torch.tensor(value)
        with compiled(True):
            bits = masks.draw_bits(x, p, seed).bits
        with triton() as device:
            from models.ops.masks import triton as kernels

            of_gpu = kernels.draw_bits(x.to(device), p, seed.to(device)).bits
        expected = reference.random_bits(seed, count) >= reference.threshold(p)
        for found in (bits[:-1], of_gpu.cpu()):
            drawn = (found[:, None] >> torch.arange(8)) & 1
            assert torch.equal(drawn.flatten()[:count].bool(), expected)


def test_the_bits_of_a_gpu_go_on_past_the_first_program():
    with triton() as device:
        from models.ops.masks import triton as kernels

        count = 3 * kernels.TILES * reference.TILE + 5
        found = kernels.draw_bits(
            torch.ones(count).to(device), 0.3, torch.tensor(11, device=device)
        ).bits
    drawn = ((found.cpu()[:, None] >> torch.arange(8)) & 1).flatten()[:count].bool()
    assert torch.equal(drawn, reference.random_bits(torch.tensor(11), count) >= 19661)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_chance_and_independence(p):
    count = 1 << 18
    keep = (reference.random_bits(torch.tensor(5), count) >= reference.threshold(p)).double()
    deviation = (p * (1 - p) / count) ** 0.5
    assert abs(keep.mean() - (1 - p)) < 4 * deviation
    centred = (keep - keep.mean()) / keep.std()
    for lag in (1, 2, 7, 8, 16, 32, 64, 128, 256):
        assert abs((centred[:-lag] * centred[lag:]).mean()) < 4.5 / count**0.5
    other = (reference.random_bits(torch.tensor(6), count) >= reference.threshold(p)).double()
    assert abs((centred * (other - other.mean()) / other.std()).mean()) < 4.5 / count**0.5


def test_the_halves_are_uniform():
    bits = reference.random_bits(torch.tensor(9), 1 << 18)
    counts = torch.bincount(bits >> 8, minlength=256).double()
    expected = len(bits) / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert 150 < chi_squared < 370  # 255 degrees of freedom, five deviations


@pytest.mark.parametrize("form", [True, False])
def test_the_default_generator_fixes_the_mask(form):
    x = torch.ones(300)
    with compiled(form):
        torch.manual_seed(1)
        first, second = dropout(x, 0.5, True), dropout(x, 0.5, True)
        torch.manual_seed(1)
        assert torch.equal(dropout(x, 0.5, True), first)
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 2.0}


def test_the_mask_does_not_depend_on_threads():
    x = torch.ones(100_000)
    outputs = []
    for count in (1, 2, 5):
        with threads(count):
            torch.manual_seed(3)
            outputs.append(dropout(x, 0.3, True))
    assert all(torch.equal(outputs[0], output) for output in outputs)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_wrong_probability_is_refused(p):
    with pytest.raises(ValueError, match="probability"):
        dropout(torch.ones(3), p, True)


def test_without_training_nothing_is_dropped_and_no_seed_is_drawn():
    x = torch.ones(3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    assert torch.equal(torch.get_rng_state(), state)
