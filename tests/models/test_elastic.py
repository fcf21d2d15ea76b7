"""ELASTIC against explicit softmax maps, and its memory."""

import pytest
import torch
from pydantic import ValidationError

import models
from models.elastic import CausalDispatcher, Elastic, ElasticConfig, EncoderDispatcher
from models.memory import InterestMemory
from tests.models.test_models import packed


def layer(config: ElasticConfig) -> torch.nn.Module:
    """One mixer in float64, its weights far from their small start."""
    torch.manual_seed(3)
    made = (CausalDispatcher if config.causal else EncoderDispatcher)(config).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def test_the_causal_form_is_a_masked_softmax_over_time() -> None:
    """Every position gathers its experts anew from its prefix: O(N^2), straight from the text."""
    dispatcher = layer(ElasticConfig(d=8, heads=2, experts=5, dropout=0.0))
    assert isinstance(dispatcher, CausalDispatcher)
    n = 13
    x = torch.randn(n, 8, dtype=torch.float64)
    scores, q, k, v = dispatcher.project(x)
    read = []
    for t in range(n):
        weights = scores[: t + 1].softmax(0)  # [t + 1, H, K]
        keys = torch.einsum("shk,she->hke", weights, k[: t + 1])
        values = torch.einsum("shk,she->hke", weights, v[: t + 1])
        asked = torch.einsum("he,hke->hk", q[t], keys) / 4**0.5
        read.append(torch.einsum("hk,hke->he", asked.softmax(-1), values))
    wanted = dispatcher.norm(x + dispatcher.out_proj(torch.stack(read).flatten(1)))
    found = dispatcher(x, packed([[1] * n]))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_the_encoder_form_is_the_published_pair_of_softmaxes() -> None:
    dispatcher = layer(ElasticConfig(form="encoder", d=8, heads=1, experts=5, dropout=0.0))
    assert isinstance(dispatcher, EncoderDispatcher)
    n = 13
    x, experts = torch.randn(n, 8, dtype=torch.float64), torch.randn(1, 5, 8, dtype=torch.float64)
    key, value, query = dispatcher.token_proj(x).chunk(3, dim=1)
    weights = (dispatcher.gather_query(experts[0]) @ key.T / 8**0.5).softmax(1)
    gathered = dispatcher.gather_norm(experts[0] + dispatcher.gather_out(weights @ value))
    told_key, told_value = dispatcher.expert_proj(gathered).chunk(2, dim=1)
    read = (query @ told_key.T / 8**0.5).softmax(1) @ told_value
    wanted = dispatcher.norm(x + dispatcher.out_proj(read))
    found, renewed = dispatcher(x, experts, packed([[1] * n]))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(renewed[0], gathered, rtol=0, atol=1e-12)


def test_selection_reads_the_slots_of_the_user() -> None:
    config = ElasticConfig(
        form="encoder", memory="experts", d=8, experts=6, memory_side=4, memory_heads=2
    )
    model = models.build(config, 20).double().eval()
    assert isinstance(model, Elastic)
    assert model.selection is not None
    x = torch.randn(7, 8, dtype=torch.float64)
    selected = model.selection(x, packed([[1] * 4, [2] * 3]))
    assert selected.shape == (2, 6, 8)
    memory = model.selection.memory
    # Each expert is a multiple of one interest.
    for user in range(2):
        similarity = torch.cosine_similarity(selected[user][:, None], memory.interests, dim=2)
        assert (similarity.abs().max(1).values > 1 - 1e-9).all()
    alone = model.selection(x[4:], packed([[2] * 3]))
    torch.testing.assert_close(selected[1:], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"memory": "experts"}, "would select by the whole history and tell the model its future"),
        ({"heads": 3}, "heads 3 does not divide d 64"),
        ({"positions": "none"}, "max_history is a number with positions learned, else null"),
        (
            {"form": "encoder", "memory": "experts", "experts": 6},
            "memory_heads 4 does not divide experts 6",
        ),
        (
            {"memory": "residual", "memory_side": 2},
            "5 reads a head exceed memory_side 2",
        ),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ElasticConfig(**settings)


def test_usage_is_counted_and_told() -> None:
    torch.manual_seed(1)
    memory = InterestMemory(query_width=8, d=8, side=4, heads=2, reads=1).train()
    assert memory.usage() == {}
    memory.read(torch.randn(1, 8).expand(50, 8))  # all the same query: a slot a head
    told = memory.usage()
    slots = round(told["memory_used"] * 16)
    assert slots in (1, 2)
    assert told["memory_busiest"] == pytest.approx(16 / slots)
    assert told["memory_kl"] == pytest.approx(torch.tensor(16 / slots).log().item(), abs=1e-5)
    assert memory.usage() == {}
    memory.eval().read(torch.randn(3, 8))
    assert memory.usage() == {}


def test_a_gradient_reaches_keys_query_and_interests() -> None:
    memory = InterestMemory(query_width=8, d=8, side=4, heads=2, reads=3)
    memory.read(torch.randn(5, 8)).square().sum().backward()
    for name, parameter in memory.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name


def test_interests_are_not_decayed() -> None:
    model = models.build(ElasticConfig(d=8, experts=4, memory="residual", memory_side=4), 5)
    assert "blocks.0.mixer.memory.memory.interests" in model.undecayed()
    assert set(model.diagnostics()) == set()
