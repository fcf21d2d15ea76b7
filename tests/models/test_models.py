"""Every model: packed equals alone, one event at a time equals all at once, no look ahead."""

import copy

import pytest
import torch

import models
from models import PackedBatch, SequentialModel

# Every model in every form that works differently: name and settings. A new model adds its own.
CAUSAL: dict[str, tuple[str, dict[str, object]]] = {
    "lrurec": ("lrurec", {}),
    "sasrec": ("sasrec", {"heads": 2}),
    "hydrarec": ("hydrarec", {}),
    "hydrarec-bare": (
        "hydrarec",
        {"positions": "none", "length_norm": "none", "rescale": False, "max_history": None},
    ),
    "hydrarec-rotary": ("hydrarec", {"positions": "rotary", "max_history": None}),
    "hydrarec-mixed": ("hydrarec", {"hydra_blocks": 1}),
    "elastic": ("elastic", {"experts": 6}),
    "elastic-memory": (
        "elastic",
        {
            "experts": 6,
            "positions": "none",
            "max_history": None,
            "memory": "residual",
            "memory_side": 8,
            "memory_heads": 2,
        },
    ),
    "recgrela": ("recgrela", {}),
    "control-mean": ("control", {}),
    "control-none": ("control", {"mixer": "none"}),
}
BOTH_WAYS: dict[str, tuple[str, dict[str, object]]] = {
    "bert4rec": ("bert4rec", {}),
    "hydrarec": ("hydrarec", {"both_ways": True}),
    "hydrarec-mixed": ("hydrarec", {"both_ways": True, "hydra_blocks": 1}),
    "elastic": ("elastic", {"form": "encoder", "experts": 6}),
    "elastic-selection": (
        "elastic",
        {
            "form": "encoder",
            "experts": 6,
            "memory": "experts",
            "memory_side": 8,
            "memory_heads": 2,
        },
    ),
    "elastic-memory": (
        "elastic",
        {
            "form": "encoder",
            "experts": 6,
            "memory": "residual",
            "memory_side": 8,
            "memory_heads": 2,
        },
    ),
    "recgrela": ("recgrela", {"form": "both_ways"}),
    "recgrela-padded": ("recgrela", {"form": "padded", "max_history": 40}),
}
# Without a limit: no absolute positions, no attention.
UNLIMITED = [
    "lrurec",
    "hydrarec-bare",
    "hydrarec-rotary",
    "elastic-memory",
    "recgrela",
    "control-mean",
]


def packed(histories: list[list[int]]) -> PackedBatch:
    """Inputs only; the targets do not matter to ``encode``."""
    items = torch.tensor([item for history in histories for item in history])
    lengths = torch.tensor([0, *(len(history) for history in histories)])
    return PackedBatch(items, lengths.cumsum(0), torch.zeros_like(items))


def fresh(form: str, dtype: torch.dtype = torch.float64, **settings: object) -> SequentialModel:
    """A small model of a form in CAUSAL, in evaluation mode, its parts large enough to matter."""
    name, known = CAUSAL[form]
    return build_small(name, known | settings, dtype)


def fresh_both_ways(form: str) -> SequentialModel:
    """The same for a form in BOTH_WAYS."""
    return build_small(*BOTH_WAYS[form])


def build_small(
    name: str, settings: dict[str, object], dtype: torch.dtype = torch.float64
) -> SequentialModel:
    torch.manual_seed(0)
    config = models.config_of(name)(name=name, d=16, **settings)
    model = models.build(config, catalogue_size=30).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # fresh weights are too small to tell forms apart
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


HISTORIES = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 9], [30, 1, 8, 4], list(range(1, 31))]


@pytest.mark.parametrize("name", CAUSAL)
def test_packed_segments_do_not_see_each_other(name: str) -> None:
    model = fresh(name)
    together = model.encode(packed(HISTORIES))
    alone = torch.cat([model.encode(packed([history])) for history in HISTORIES])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_step_equals_encode(name: str, dtype: torch.dtype, atol: float) -> None:
    model = fresh(name, dtype)
    length = 12
    histories = [[(7 * u + 3 * t) % 30 + 1 for t in range(length)] for u in range(4)]
    hidden = model.encode(packed(histories)).view(4, length, -1)
    state = model.init_state(4)
    for t in range(length):
        now, state = model.step(torch.tensor([history[t] for history in histories]), state)
        torch.testing.assert_close(now, hidden[:, t], rtol=0, atol=atol)


@pytest.mark.parametrize("name", CAUSAL)
def test_states_of_users_at_different_lengths_go_on_together(name: str) -> None:
    model = fresh(name)
    state = {k: v.clone() for k, v in model.init_state(2).items()}
    _, one_ahead = model.step(torch.tensor([4]), {k: v[:1] for k, v in state.items()})
    mixed = {k: torch.cat([one_ahead[k], state[k][1:]]) for k in state}
    now, _ = model.step(torch.tensor([7, 9]), mixed)
    expected = model.encode(packed([[4, 7], [9]]))[[1, 2]]
    torch.testing.assert_close(now, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_item_leaves_earlier_outputs_untouched(name: str) -> None:
    model = fresh(name)
    changed = copy.deepcopy(HISTORIES)
    changed[1][4] = 20
    before, after = model.encode(packed(HISTORIES)), model.encode(packed(changed))
    same = (before == after).all(dim=1)
    # Tokens 1 to 7 are the second history; its position 4 and those behind it may differ.
    assert same[:5].all()
    assert same[8:].all()
    assert not same[5]
    assert name == "control-none" or not same[5:8].any()


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_both_ways_means_both_ways_inside_the_segment(name: str) -> None:
    model = fresh_both_ways(name)
    changed = copy.deepcopy(HISTORIES)
    changed[1][4] = 20
    before, after = model.encode(packed(HISTORIES)), model.encode(packed(changed))
    same = (before == after).all(dim=1)
    assert not same[1:8].any()
    torch.testing.assert_close(before[:1], after[:1], rtol=0, atol=1e-12)
    torch.testing.assert_close(before[8:], after[8:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_both_ways_packed_segments_do_not_see_each_other(name: str) -> None:
    model = fresh_both_ways(name)
    together = model.encode(packed(HISTORIES))
    alone = torch.cat([model.encode(packed([history])) for history in HISTORIES])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_both_ways_has_no_state_and_no_objective_that_leaks(name: str) -> None:
    model = fresh_both_ways(name)
    assert model.config.objectives == ("cloze", "last_item")
    with pytest.raises(ValueError, match="looks both ways here, so it has no state"):
        model.init_state(1)


@pytest.mark.parametrize("name", UNLIMITED)
def test_step_equals_encode_over_thousands_of_events(name: str) -> None:
    model = fresh(name)
    histories = [[(7 * u + 3 * t + t * t) % 30 + 1 for t in range(3000)] for u in range(2)]
    with torch.no_grad():
        hidden = model.encode(packed(histories)).view(2, 3000, -1)
        state = model.init_state(2)
        for t in range(3000):
            now, state = model.step(torch.tensor([history[t] for history in histories]), state)
            torch.testing.assert_close(now, hidden[:, t], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CAUSAL)
def test_activation_checkpointing_changes_nothing(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = fresh(name, activation_checkpointing=checkpointing).train()
        torch.manual_seed(4)
        model.encode(packed(HISTORIES)).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for parameter, gradient in gradients[0].items():
        again = gradients[1][parameter]
        assert (gradient is None) == (again is None)
        if gradient is not None and again is not None:
            torch.testing.assert_close(gradient, again, rtol=1e-12, atol=1e-12, msg=parameter)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_empty_history_can_begin_a_segment(name: str) -> None:
    model = fresh(name)
    hidden = model.encode(packed([[0, 3, 4]]))
    state = model.init_state(1)
    for position, item in enumerate([0, 3, 4]):
        now, state = model.step(torch.tensor([item]), state)
        torch.testing.assert_close(now[0], hidden[position], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["sasrec", "hydrarec", "elastic"])
def test_no_more_history_than_positions(name: str) -> None:
    model = fresh(name, max_history=4)
    with pytest.raises(ValueError, match=r"5 tokens exceeds model\.max_history 4"):
        model.encode(packed([[1, 2, 3, 4, 5]]))
    state = model.init_state(1)
    for item in (1, 2, 3, 4):
        _, state = model.step(torch.tensor([item]), state)
    with pytest.raises(ValueError, match=r"model\.max_history 4 events already"):
        model.step(torch.tensor([5]), state)


def test_dropout_follows_the_seed_alone() -> None:
    model = fresh("lrurec", torch.float32).train()

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.encode(packed(HISTORIES))

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("name", CAUSAL)
def test_rows_of_items_are_those_of_the_table(name: str) -> None:
    model = fresh(name)
    items = torch.tensor([5, 0, 5, 11])
    table, bias = model.item_scores()
    rows, biases = model.item_rows(items)
    assert torch.equal(rows, table[items])
    assert (biases is None) == (bias is None)
    if bias is not None and biases is not None:
        assert torch.equal(biases, bias[items])
