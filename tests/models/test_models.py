"""Every model: packed equals alone, one event at a time equals all at once, no look ahead."""

import copy

import pytest
import torch

import models
from models import PackedBatch, SequentialModel

NAMES = models.names()


def packed(histories: list[list[int]]) -> PackedBatch:
    """Inputs only; the targets do not matter to ``encode``."""
    items = torch.tensor([item for history in histories for item in history])
    lengths = torch.tensor([0, *(len(history) for history in histories)])
    return PackedBatch(items, lengths.cumsum(0), torch.zeros_like(items))


def fresh(name: str, dtype: torch.dtype = torch.float64, **settings: object) -> SequentialModel:
    torch.manual_seed(0)
    config = models.config_of(name)(name=name, d=16, **settings)
    model = models.build(config, catalogue_size=30).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # fresh weights are too small to tell forms apart
            if parameter.shape[-1:] == (16,) or parameter.shape[:1] == (16,):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


HISTORIES = [[5], [1, 2, 3, 4, 5, 6, 7], [9, 9], [30, 1, 8, 4], list(range(1, 31))]


@pytest.mark.parametrize("name", NAMES)
def test_packed_segments_do_not_see_each_other(name: str) -> None:
    model = fresh(name)
    together = model.encode(packed(HISTORIES))
    alone = torch.cat([model.encode(packed([history])) for history in HISTORIES])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
def test_states_of_users_at_different_lengths_go_on_together(name: str) -> None:
    model = fresh(name)
    state = {k: v.clone() for k, v in model.init_state(2).items()}
    _, one_ahead = model.step(torch.tensor([4]), {k: v[:1] for k, v in state.items()})
    mixed = {k: torch.cat([one_ahead[k], state[k][1:]]) for k in state}
    now, _ = model.step(torch.tensor([7, 9]), mixed)
    expected = model.encode(packed([[4, 7], [9]]))[[1, 2]]
    torch.testing.assert_close(now, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_later_item_leaves_earlier_outputs_untouched(name: str) -> None:
    model = fresh(name)
    changed = copy.deepcopy(HISTORIES)
    changed[1][4] = 20
    before, after = model.encode(packed(HISTORIES)), model.encode(packed(changed))
    same = (before == after).all(dim=1)
    # Tokens 1 to 7 are the second history; its position 4 and those behind it may differ.
    assert same[:5].all()
    assert same[8:].all()
    assert not same[5:8].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_empty_history_can_begin_a_segment(name: str) -> None:
    model = fresh(name)
    hidden = model.encode(packed([[0, 3, 4]]))
    state = model.init_state(1)
    for position, item in enumerate([0, 3, 4]):
        now, state = model.step(torch.tensor([item]), state)
        torch.testing.assert_close(now[0], hidden[position], rtol=0, atol=1e-10)


def test_sasrec_refuses_more_history_than_it_has_positions() -> None:
    model = fresh("sasrec", max_history=4)
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
