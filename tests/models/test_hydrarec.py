"""HydraRec against explicit attention maps, one a channel."""

import pytest
import torch
from pydantic import ValidationError

import models
from models.hydrarec import HydraMixer, HydraRec, HydraRecConfig
from tests.models.test_models import packed


def mixer(**settings: object) -> HydraMixer:
    """One layer in float64, its weights far from their small start."""
    torch.manual_seed(3)
    layer = HydraMixer(HydraRecConfig(d=8, dropout=0.0, **settings)).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("length_norm", ["none", "learned"])
def test_it_is_attention_with_a_head_a_channel(both_ways: bool, length_norm: str) -> None:
    """A map N x N for each channel, q_c k_c', masked where causal; their sum is the cosine."""
    layer = mixer(both_ways=both_ways, length_norm=length_norm, rescale=False)
    n = 11
    x = torch.randn(n, 8, dtype=torch.float64)
    q, k, v = layer.in_proj(x).chunk(3, dim=1)
    q, k = (t / t.norm(dim=1, keepdim=True) for t in (q, k))
    maps = torch.einsum("tc,sc->cts", q, k)
    cosine = torch.cosine_similarity(
        layer.in_proj(x)[:, None, :8], layer.in_proj(x)[None, :, 8:16], dim=2
    )
    torch.testing.assert_close(maps.sum(0), cosine, rtol=0, atol=1e-14)
    if not both_ways:
        maps = maps.tril()
    o = torch.einsum("cts,sc->tc", maps, v)
    if layer.exponent is not None:
        count = torch.full((n,), n) if both_ways else torch.arange(1, n + 1)
        o = o * count[:, None] ** -torch.sigmoid(layer.exponent)
    wanted = layer.norm(x + layer.out_proj(o))
    found = layer(x, packed([[1] * n]))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_normalised_over_the_full_width_not_a_head() -> None:
    """A head of one channel would leave the sign alone, and q would say nothing of its size."""
    layer = mixer()
    x = torch.randn(5, 8, dtype=torch.float64)
    q, _ = layer.project(x, torch.arange(5))
    assert len(q.abs().unique()) > 20
    torch.testing.assert_close(q.norm(dim=1), torch.full((5,), 8**0.25).double())


def test_a_zero_vector_does_no_harm() -> None:
    layer = mixer()
    with torch.no_grad():
        layer.in_proj.weight.zero_()
        layer.in_proj.bias.zero_()
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    layer(x, packed([[1] * 4])).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_bf16_over_a_long_history() -> None:
    """A sum kept in bf16 would stand still after some hundred terms."""
    layer = mixer(length_norm="learned")
    x = 1 + 0.1 * torch.randn(4096, 8)
    batch = packed([[1] * 4096])
    wide = layer.float()(x, batch)
    narrow = layer.bfloat16()(x.bfloat16(), batch)
    assert (narrow.float() - wide)[-100:].abs().max() < 0.1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hydra_blocks": 3}, "hydra_blocks 3 exceeds blocks 2"),
        ({"positions": "none"}, "max_history must be null with positions none"),
        ({"max_history": None}, "max_history must be a number with positions learned"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        HydraRecConfig(**settings)


def test_exponents_are_told() -> None:
    model = models.build(HydraRecConfig(d=8), 5)
    assert isinstance(model, HydraRec)
    told = model.diagnostics()
    assert list(told) == ["length_exponent/block_0", "length_exponent/block_1"]
    assert told["length_exponent/block_0"] == pytest.approx(0.6225, abs=1e-4)
