"""Losses against oracles by hand, and the estimate of the full softmax against the full softmax."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import models
from models import PackedBatch, SequentialModel
from models.losses import Drawn, Loss, LossConfig, build_loss

ITEMS = 40
COUNTS = torch.tensor([0, *[(7 * item) % 13 for item in range(1, ITEMS + 1)]])
FULL = {"name": "full_softmax"}
MIXED = {"name": "sampled_softmax", "uniform": 9, "popularity": 5, "batch": 4}
GBCE = {"name": "gbce", "uniform": 12, "t": 0.6}
KINDS = {
    "full": FULL,
    "uniform": {"name": "sampled_softmax", "uniform": 15},
    "popularity": {"name": "sampled_softmax", "popularity": 15},
    "mixed": MIXED,
    "mixed-blocks": MIXED | {"block_tokens": 4},
    "gbce": GBCE,
    "gbce-blocks": GBCE | {"block_tokens": 5},
}
ESTIMATES = ["uniform", "popularity", "mixed"]
DRAWING = [name for name in KINDS if name != "full"]


def small_model(dtype: torch.dtype = torch.float64, name: str = "lrurec") -> SequentialModel:
    torch.manual_seed(0)
    model = models.build(models.config_of(name)(name=name, d=8), ITEMS).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # fresh weights are too small to tell losses apart
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batch_of(tokens: int = 18) -> PackedBatch:
    """Two histories; a token in five has no target."""
    places = torch.arange(tokens)
    items = places * 11 % ITEMS + 1
    targets = torch.where(places % 5 == 2, 0, places * 17 % ITEMS % 9 + 1)
    return PackedBatch(items, torch.tensor([0, tokens // 3, tokens]), targets)


def loss_of(model: SequentialModel, kind: str, **changes: Any) -> Loss:
    return build_loss(model, LossConfig(**{**KINDS[kind], **changes}), COUNTS)


def score(model: SequentialModel, hidden: torch.Tensor, item: int) -> torch.Tensor:
    found = hidden @ model.item_embedding.weight[item]
    return found if model.item_bias is None else found + model.item_bias[item]


def expected_times(config: LossConfig, item: int, targets: list[int]) -> float:
    """How often a block draws the item, in expectation."""
    seen = COUNTS + 1
    return (
        config.uniform / (ITEMS + 1)
        + config.popularity * float(seen[item]) / float(seen.sum())
        + config.batch * Counter(targets)[item] / len(targets)
    )


def oracle(model: SequentialModel, config: LossConfig, batch: PackedBatch, drawn: Drawn | None):
    """The loss, a token and a class at a time."""
    targets = batch.targets.tolist()
    asked = [target for target in targets if target]
    hidden = model.encode(batch)
    total = torch.zeros((), dtype=hidden.dtype)
    for token, target in enumerate(targets):
        if not target:
            continue
        own = score(model, hidden[token], target)
        if drawn is None:
            others = [score(model, hidden[token], i) for i in range(ITEMS + 1) if i != target]
            total = total + torch.stack([own, *others]).exp().sum().log() - own
            continue
        negatives = drawn.items[token // (config.block_tokens or len(targets))].tolist()
        others = [(i, score(model, hidden[token], i)) for i in negatives if i != target]
        if config.name == "sampled_softmax":
            whole = own.exp()
            for item, other in others:
                whole = whole + other.exp() / expected_times(config, item, asked)
            total = total + whole.log() - own
        else:
            assert config.t is not None
            alpha = config.uniform / (ITEMS - 1)
            beta = alpha * (config.t * (1 - 1 / alpha) + 1 / alpha)
            prior = math.log(beta / config.uniform)
            part = beta * (own + prior).sigmoid().log()
            for _, other in others:
                part = part + (1 - (other + prior).sigmoid()).log()
            total = total - part / (config.uniform + 1)
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lrurec", "recgrela"])  # with a bias of items and without
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_loss_and_gradients_are_those_of_the_oracle(
    kind: str, name: str, dtype: torch.dtype, within: float
) -> None:
    batch = batch_of()
    model, wide = small_model(dtype, name), small_model(torch.float64, name)
    wide.load_state_dict(model.state_dict())
    loss = loss_of(model, kind)
    torch.manual_seed(3)
    drawn = loss.draw(batch)
    want = oracle(wide, LossConfig(**KINDS[kind]), batch, drawn)
    found = loss(batch, drawn)
    # The weights of negatives are fp32, whatever the model is.
    assert found.item() == pytest.approx(want.item(), rel=max(within, 1e-6))
    found.backward()
    want.backward()
    for (name, parameter), other in zip(model.named_parameters(), wide.parameters(), strict=True):
        assert parameter.grad is not None, name
        assert other.grad is not None, name
        atol = max(within, 1e-6) * max(1.0, float(other.grad.abs().max()))
        torch.testing.assert_close(parameter.grad.double(), other.grad, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", DRAWING)
def test_what_is_not_given_is_drawn(kind: str) -> None:
    model, batch = small_model(), batch_of()
    loss = loss_of(model, kind)
    torch.manual_seed(5)
    drawn = loss.draw(batch)
    torch.manual_seed(5)
    assert torch.equal(loss(batch), loss(batch, drawn))


def estimate(
    model: SequentialModel, batch: PackedBatch, kind: str, negatives: int, times: int
) -> tuple[float, float]:
    """Mean of the sampled loss over ``times`` draws (a token has its own), and its standard
    error."""
    sources = ("uniform", "popularity", "batch")
    shares = {source: KINDS[kind].get(source, 0) for source in sources}
    unit = negatives // sum(shares.values())
    wanted = {source: share * unit for source, share in shares.items()}
    loss = loss_of(model, kind, **wanted, block_tokens=1)
    with torch.no_grad():
        found = torch.stack([loss(batch).double() for _ in range(times)])
    return float(found.mean()), float(found.std()) / math.sqrt(times)


@pytest.mark.parametrize("kind", ESTIMATES)
def test_the_estimate_is_low_by_a_term_that_shrinks_with_the_negatives(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = small_model(torch.float32), batch_of(300)
    hidden = model.encode(batch).detach()
    monkeypatch.setattr(model, "encode", lambda batch: hidden)  # it is the same every time
    full = loss_of(model, "full")(batch).item()
    torch.manual_seed(0)
    bias, error = {}, {}
    for negatives, times in ((36, 120), (144, 300)):
        mean, error[negatives] = estimate(model, batch, kind, negatives, times)
        bias[negatives] = mean - full
    # The mean of logs is below the log of the mean: the bias is there, and measured.
    assert bias[36] < -8 * error[36]
    # Four times the negatives, a quarter of the bias: to the errors, and the next order.
    slack = 4 * math.hypot(error[36], 4 * error[144]) + 0.1 * abs(bias[36])
    assert abs(bias[36] - 4 * bias[144]) < slack < abs(bias[36])
    # With very many it is the full softmax.
    mean, standard = estimate(model, batch, kind, 3600, 8)
    assert abs(mean - full) < 5 * standard + 0.02 * abs(bias[36])


@pytest.mark.parametrize("kind", ESTIMATES)
def test_the_sum_over_the_others_is_estimated_without_bias(kind: str) -> None:
    model, batch = small_model(), batch_of(60)
    loss = loss_of(model, kind, block_tokens=1)
    hidden = model.encode(batch).detach()
    table, bias = model.item_scores()
    assert bias is not None
    shares = (hidden @ table.T + bias).exp().detach()
    shares /= shares.mean()
    torch.manual_seed(1)
    token = int(batch.target_mask.nonzero()[7])
    target = int(batch.targets[token])
    found = []
    for _ in range(400):
        drawn = loss.draw(batch)
        assert drawn is not None
        weight = drawn.log_weights.double().exp() * (drawn.items != target)
        found.append((weight * shares[token][drawn.items]).sum(1))  # every block, for one target
    sums = torch.cat(found)
    want = shares[token].sum() - shares[token][target]
    error = float(sums.std()) / math.sqrt(len(sums))
    assert abs(float(sums.mean() - want)) < 4 * error
    assert error < 0.01 * want


def test_negatives_come_as_often_as_expected() -> None:
    loss = loss_of(small_model(), "mixed", block_tokens=1)
    batch = batch_of(200)
    torch.manual_seed(0)
    blocks, seen = 0, torch.zeros(ITEMS + 1, dtype=torch.float64)
    for _ in range(100):
        drawn = loss.draw(batch)
        assert drawn is not None
        blocks += len(drawn.items)
        seen += torch.bincount(drawn.items.flatten(), minlength=ITEMS + 1)
    asked = batch.targets[batch.target_mask].tolist()
    config = LossConfig(**MIXED)
    times = torch.tensor([expected_times(config, i, asked) for i in range(ITEMS + 1)])
    assert float(times.sum()) == pytest.approx(config.negatives)
    z = (seen - blocks * times) / (blocks * times).sqrt()
    assert float(z.abs().max()) < 4.5  # of 41 counts


def test_gbce_begins_where_scores_have_no_common_way_to_go() -> None:
    """With all scores zero, the pulls on a target and on its negatives sum to zero."""
    model, batch = small_model(), batch_of()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    bias = model.item_bias
    assert bias is not None
    loss = loss_of(model, "gbce", block_tokens=None)
    negatives = sorted({*range(1, ITEMS + 1)} - {*batch.targets.tolist()})
    assert negatives
    items = torch.tensor(negatives * GBCE["uniform"])[None, : GBCE["uniform"]]
    drawn = Drawn(items, torch.zeros(items.shape))
    loss(batch, drawn).backward()
    assert bias.grad is not None
    assert float(bias.grad.abs().max()) > 1e-3
    assert float(bias.grad.sum()) == pytest.approx(0.0, abs=1e-6)


def test_gbce_draws_items_alike() -> None:
    loss = loss_of(small_model(), "gbce", block_tokens=1)
    torch.manual_seed(0)
    drawn = loss.draw(batch_of(4000))
    assert drawn is not None
    seen = torch.bincount(drawn.items.flatten(), minlength=ITEMS + 1).double()
    assert seen[0] == 0
    mean = drawn.items.numel() / ITEMS
    assert float((seen[1:] - mean).abs().max()) < 4.5 * math.sqrt(mean)


@pytest.mark.parametrize("kind", DRAWING)
def test_a_target_is_no_negative_of_itself(kind: str) -> None:
    model, batch = small_model(), batch_of()
    loss = loss_of(model, kind, block_tokens=None)
    drawn = loss.draw(batch)
    assert drawn is not None
    target = int(batch.targets[0])
    one = PackedBatch(batch.items, batch.offsets, torch.zeros_like(batch.targets))
    one.targets[0] = target
    items = drawn.items.clone()
    items[0, ::2] = target
    found = loss(one, Drawn(items, drawn.log_weights))
    config = LossConfig(**{**KINDS[kind], "block_tokens": None})
    hidden = model.encode(one)[0]
    own = score(model, hidden, target)
    kept = [
        (score(model, hidden, int(i)), float(w))
        for i, w in zip(items[0], drawn.log_weights[0], strict=True)
        if int(i) != target
    ]
    if config.name == "sampled_softmax":
        want = (own.exp() + sum((s + w).exp() for s, w in kept)).log() - own
        alone = loss(one, Drawn(torch.full_like(items, target), drawn.log_weights))
        assert alone.item() == pytest.approx(0, abs=1e-12)
    else:
        positive = loss.positive * torch.nn.functional.logsigmoid(own + loss.prior)
        want = -positive - sum((1 - (s + loss.prior).sigmoid()).log() for s, _ in kept)
        want = want / (config.uniform + 1)
    assert found.item() == pytest.approx(want.item(), rel=1e-6)


@pytest.mark.parametrize("kind", DRAWING)
def test_classes_come_only_by_their_rows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = small_model(), batch_of()
    loss = loss_of(model, kind)
    drawn = loss.draw(batch)
    assert drawn is not None
    items = loss.items(batch, drawn)
    wanted = {*batch.targets.tolist(), *drawn.items.flatten().tolist()} - {0}
    assert set(items.tolist()) - {0} == wanted
    assert items.tolist() == sorted(set(items.tolist()))
    asked = []
    known = model.item_rows
    monkeypatch.setattr(model, "item_rows", lambda i: asked.append(i) or known(i))
    monkeypatch.setattr(model, "item_scores", lambda: pytest.fail("the whole table was asked for"))
    loss(batch, drawn)
    assert len(asked) == 1
    assert torch.equal(asked[0], items)


@pytest.mark.parametrize("kind", KINDS)
def test_without_targets_nothing_is_drawn_and_nothing_lost(kind: str) -> None:
    model = small_model(torch.float32).train()
    nothing = PackedBatch(
        torch.zeros(1, dtype=torch.int64), torch.tensor([0, 1]), torch.tensor([0])
    )
    loss = loss_of(model, kind)
    before = torch.get_rng_state()
    assert loss.draw(nothing) is None
    assert torch.equal(torch.get_rng_state(), before)
    found = loss(nothing)
    found.backward()
    assert found.item() == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("kind", DRAWING)
def test_draws_do_not_depend_on_the_model(kind: str) -> None:
    batch = batch_of()
    drawn = []
    for name in ("lrurec", "recgrela"):
        loss = loss_of(small_model(name=name), kind)
        torch.manual_seed(2)
        drawn.append(loss.draw(batch))
    assert drawn[0] is not None
    assert drawn[1] is not None
    assert torch.equal(drawn[0].items, drawn[1].items)
    assert torch.equal(drawn[0].log_weights, drawn[1].log_weights)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"name": "sampled_softmax", "batch": 8}, "never reach most"),
        ({"name": "sampled_softmax"}, "needs uniform or popularity"),
        ({"name": "full_softmax", "uniform": 8}, "has no negatives"),
        ({"name": "gbce", "t": 0.5}, "needs uniform"),
        ({"name": "gbce", "uniform": 8}, "t goes with gbce"),
        ({"name": "gbce", "uniform": 8, "popularity": 2, "t": 0.5}, "takes no others"),
        ({"name": "sampled_softmax", "uniform": 8, "t": 0.5}, "t goes with gbce"),
    ],
)
def test_settings_that_do_not_fit_are_refused(config: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        LossConfig(**config)


def test_counts_and_catalogue_have_to_fit() -> None:
    with pytest.raises(ValueError, match="counts of 41 classes, not none"):
        build_loss(small_model(), LossConfig(**MIXED))
    with pytest.raises(ValueError, match="counts of 41 classes, not 3"):
        build_loss(small_model(), LossConfig(**MIXED), torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="needs more than 40 items"):
        build_loss(small_model(), LossConfig(name="gbce", uniform=40, t=0.5))
