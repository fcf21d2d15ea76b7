"""RecGRELA against its published equations, on padded rows, in plain torch."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

import models
from models.recgrela import GRELABlock, RecGRELA, RecGRELAConfig
from tests.models.test_models import packed


def build(catalogue_size: int = 40, **settings: object) -> RecGRELA:
    torch.manual_seed(2)
    model = models.build(RecGRELAConfig(**settings), catalogue_size)
    assert isinstance(model, RecGRELA)
    return model


def lively(form: str, **settings: object) -> RecGRELA:
    """In float64 and evaluation mode, with weights far from their small start."""
    model = build(form=form, d=16, **settings).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_parameter_count() -> None:
    with torch.device("meta"):
        model = build(3416)
    assert sum(parameter.numel() for parameter in model.parameters()) == 436_672


def published_rotation(x: torch.Tensor) -> torch.Tensor:
    """Adjacent pairs of the full width as complex numbers; x ``[N, D]``, positions 0 to N - 1."""
    length, d = x.shape
    angles = 10_000.0 ** (-torch.arange(d // 2, dtype=x.dtype) / (d // 2))
    turns = torch.polar(
        torch.ones(length, d // 2, dtype=x.dtype), torch.arange(length)[:, None] * angles
    )
    return torch.view_as_real(torch.view_as_complex(x.view(length, -1, 2)) * turns).flatten(1)


def published_block(block: GRELABlock, x: torch.Tensor) -> torch.Tensor:
    """One row ``[N, D]`` through the published equations, whole rows at once."""
    length, d = x.shape
    heads = block.config.heads
    h = block.mixing_norm(x)
    gate, v = nn.functional.silu(block.gate(h)), block.value(h)
    q, k = (nn.functional.elu(part) + 1 for part in block.query_key(v).chunk(2, dim=1))

    def split(t: torch.Tensor) -> torch.Tensor:
        return t.view(length, heads, d // heads).transpose(0, 1)  # [H, N, d]

    rotated_q, rotated_k = split(published_rotation(q)), split(published_rotation(k))
    denominator = split(q) @ split(k).mean(1, keepdim=True).transpose(1, 2) + 1e-6
    outer = (rotated_k / math.sqrt(length)).transpose(1, 2) @ (split(v) / math.sqrt(length))
    attended = (rotated_q @ outer / denominator).transpose(0, 1).reshape(length, d)
    shortcut = nn.functional.conv1d(
        nn.functional.pad(v.T, (3, 0)), block.taps[:, None], block.taps_bias, groups=d
    )
    x = x + block.out((attended + nn.functional.silu(shortcut).T) * gate)
    return x + block.narrow(nn.functional.gelu(block.wide(block.feed_forward_norm(x))))


def test_the_padded_form_is_the_published_one() -> None:
    model = lively("padded", max_history=12, heads=2, blocks=3)
    histories = [[3, 40, 7, 7, 1], [9], list(range(1, 13))]
    wanted = []
    for history in histories:
        x = model.embedding_norm(model.item_embedding(torch.tensor(history + [0] * 12)[:12]))
        for block in model.blocks:
            x = published_block(block, x)
        wanted.append(x[: len(history)])
    found = model.encode(packed(histories))
    torch.testing.assert_close(found, torch.cat(wanted), rtol=0, atol=1e-11)


def test_without_pads_the_forms_agree_where_all_has_been_seen() -> None:
    """At the last item of a full row, after one block: there all three see the same."""
    history = packed([list(range(1, 13))])
    last = [
        lively(form, blocks=1, max_history=12 if form == "padded" else None).encode(history)[-1]
        for form in ("causal", "both_ways", "padded")
    ]
    torch.testing.assert_close(last[0], last[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(last[0], last[2], rtol=0, atol=1e-12)


def test_a_history_of_one_item_is_the_same_in_every_form() -> None:
    forms = [
        lively(form, max_history=1 if form == "padded" else None).encode(packed([[5]]))
        for form in ("causal", "both_ways", "padded")
    ]
    torch.testing.assert_close(forms[0], forms[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(forms[0], forms[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("head", "kernel"),
    [
        (0, {1: 0.87, 2: 0.54, 5: -0.03, 10: -0.23, 20: -0.18, 50: 0.02, 100: 0.60, 199: -0.15}),
        (1, {1: 1.0, 2: 0.99, 5: 0.97, 10: 0.87, 20: 0.54, 50: -0.03, 100: -0.23, 199: -0.17}),
        (2, {5: 1.0, 20: 0.99, 50: 0.97, 100: 0.87, 199: 0.55}),
    ],
)
def test_rotation_before_the_split_gives_heads_their_own_bands(
    head: int, kernel: dict[int, float]
) -> None:
    """Its kernel over distances, for q = k = 1: known numbers of D = 64 and four heads."""
    from models.ops import rotate

    positions = torch.arange(200)
    turned = rotate(torch.ones(200, 64, dtype=torch.float64), positions).view(200, 4, 16)[:, head]
    for distance, value in kernel.items():
        found = float(turned[distance] @ turned[0]) / 16
        assert abs(found - value) < 0.006, (distance, found)


def test_initialisation() -> None:
    model = build(2000)
    block = model.blocks[0]
    assert abs(block.wide.weight.std() - 0.02) < 1e-3
    assert abs(model.item_embedding.weight.std() - 0.02) < 1e-3
    assert block.taps.abs().max() <= 0.5
    assert block.taps.std() > 0.2
    assert not block.gate.bias.any()


def test_drop_path_drops_whole_segments() -> None:
    model = build(d=16, blocks=1, dropout=0.0, drop_path=0.5).train()
    with torch.no_grad():
        model.blocks[0].narrow.weight.zero_()  # so that only the mixing is left
    batch = packed([[1, 2, 3]] * 200)
    torch.manual_seed(0)
    change = (model.encode(batch) - model._embed(batch.items)).view(200, 3, 16)
    dropped = (change == 0).all(2)
    assert torch.equal(dropped.any(1), dropped.all(1))
    assert 70 < int(dropped.all(1).sum()) < 130
    kept = change[~dropped.all(1)]
    model.eval()
    whole = model.encode(batch)[:3] - model._embed(batch.items)[:3]
    torch.testing.assert_close(kept, 2 * whole.expand_as(kept), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"d": 30}, "d 30 must be even and a multiple of heads 4"),
        ({"form": "padded"}, "max_history is the length of the rows of form padded, else null"),
        ({"max_history": 200}, "max_history is the length of the rows of form padded, else null"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        RecGRELAConfig(**settings)
