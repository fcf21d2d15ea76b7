"""The recommender in memory: a full pass's lists after every kind of update, and clear errors."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.base import State
from pipeline.errors import LonghaulError
from pipeline.evaluate import DenseScores, top_k
from pipeline.serve.best import best_items
from pipeline.serve.keys import ItemKeys, as_list, from_tensors, to_tensors
from pipeline.serve.recommender import Recommender
from pipeline.serve.slots import Slots
from tests.models.test_models import BOTH_WAYS, CAUSAL, UNLIMITED, fresh
from tests.serve.support import (
    CATALOGUE,
    KEYS,
    assert_same_lists,
    both_ways,
    causal,
    full_pass,
    names,
    serve,
)


def random_histories(users: int, seed: int, longest: int = 18) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {
        f"user-{u}": rng.integers(1, CATALOGUE + 1, rng.integers(0, longest)).tolist()
        for u in range(users)
    }


def check_against_full_pass(recommender: Recommender, histories: dict[str, list[int]]) -> None:
    with_history = {user: items for user, items in histories.items() if items}
    found = recommender.top_k(list(with_history), 7)
    assert_same_lists(found, full_pass(recommender.served, list(with_history.values()), 7))


def feed(recommender: Recommender, histories: dict[str, list[int]], seed: int) -> None:
    """Start with a part of each history, then updates of random size with users mixed."""
    rng = np.random.default_rng(seed)
    cuts = {user: int(rng.integers(0, len(items) + 1)) for user, items in histories.items()}
    recommender.start({user: names(items[: cuts[user]]) for user, items in histories.items()})
    left = [user for user, items in histories.items() for _ in items[cuts[user] :]]
    rng.shuffle(left)
    at = dict(cuts)
    events = []
    for user in left:
        events.append((user, KEYS[histories[user][at[user]] - 1]))
        at[user] += 1
    while events:
        size = int(rng.integers(1, 40))
        batch, events = events[:size], events[size:]
        recommender.update([user for user, _ in batch], [item for _, item in batch])


@pytest.mark.parametrize("form", CAUSAL)
def test_updates_give_what_a_full_pass_gives(form: str) -> None:
    histories = random_histories(40, seed=1)
    recommender = Recommender(causal(form))
    feed(recommender, histories, seed=2)
    check_against_full_pass(recommender, histories)
    assert {user: recommender.history(user) for user in histories} == {
        user: names(items) for user, items in histories.items()
    }


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_order_of_updates_gives_the_same(seed: int) -> None:
    histories = random_histories(8, seed=seed, longest=9)
    recommender = Recommender(causal("lrurec"))
    feed(recommender, histories, seed=seed)
    check_against_full_pass(recommender, histories)


@pytest.mark.parametrize("form", ["sasrec", "hydrarec", "hydrarec-mixed", "elastic"])
def test_past_max_history_the_newest_window_is_encoded(form: str) -> None:
    histories = random_histories(30, seed=3)
    recommender = Recommender(causal(form, "re-encode", max_history=6))
    feed(recommender, histories, seed=4)
    assert max(map(len, histories.values())) > 12
    check_against_full_pass(recommender, histories)


@pytest.mark.parametrize("form", BOTH_WAYS)
def test_models_that_look_both_ways_are_encoded_anew(form: str) -> None:
    histories = random_histories(20, seed=5, longest=30)
    recommender = Recommender(both_ways(form))
    feed(recommender, histories, seed=6)
    check_against_full_pass(recommender, histories)


def test_past_max_history_can_be_refused_and_nothing_changes() -> None:
    recommender = Recommender(causal("sasrec", max_history=4))
    recommender.start({"a": names([1, 2, 3]), "b": names([1])})
    before = recommender.top_k(["a", "b"])
    with pytest.raises(LonghaulError, match=r"user 'a' has 3 events, and 2 more exceed .* 4"):
        recommender.update(["b", "a", "a"], names([2, 4, 5]))
    assert recommender.top_k(["a", "b"]) == before
    recommender.update("a", KEYS[3])
    with pytest.raises(LonghaulError, match="past_max_history"):
        recommender.start({"c": names([1] * 5)})
    assert "c" not in recommender


def test_models_that_look_both_ways_want_to_be_asked_for() -> None:
    recommender = Recommender(serve(both_ways("bert4rec").model, "refuse", masks=True))
    with pytest.raises(LonghaulError, match="bert4rec looks both ways"):
        recommender.start({"a": names([1])})


def test_a_user_without_history_is_recommended_something() -> None:
    for served in (causal("lrurec"), both_ways("bert4rec")):
        recommender = Recommender(served)
        recommender.start({"nobody": []})
        wanted = full_pass(served, [[0]], 5, seen=True)[0]
        assert_same_lists([recommender.top_k("nobody", 5)], [wanted])
        recommender.update("nobody", KEYS[4])
        assert_same_lists([recommender.top_k("nobody", 5)], full_pass(served, [[5]], 5))


def test_what_is_unknown_is_named_and_nothing_changes() -> None:
    recommender = Recommender(causal("lrurec"))
    recommender.start({"a": names([1, 2])})
    with pytest.raises(LonghaulError, match=r"user 'z' has no state"):
        recommender.update(["a", "z"], names([3, 4]))
    with pytest.raises(LonghaulError, match=r"item 'hat' is not in the catalogue of 30 items"):
        recommender.update(["a", "a"], [KEYS[0], "hat"])
    with pytest.raises(LonghaulError, match=r"item 7 is int, but items are strings"):
        recommender.update("a", 7)
    with pytest.raises(LonghaulError, match=r"item 'item-1\\x00'"):
        recommender.update("a", "item-1\0")
    with pytest.raises(LonghaulError, match="item 'a much longer"):
        recommender.update("a", "a much longer key than any in the catalogue")
    with pytest.raises(LonghaulError, match="has a state already"):
        recommender.start({"b": [], "a": []})
    with pytest.raises(LonghaulError, match="2 users need as many items"):
        recommender.update(["a", "a"], names([1]))
    assert recommender.history("a") == names([1, 2])
    assert len(recommender) == 1


def test_seen_says_what_is_no_candidate() -> None:
    recommender = Recommender(causal("recgrela"))
    recommender.start({"a": names([1, 2, 3])})
    everything = [item for item, _ in recommender.top_k("a", CATALOGUE, seen="none")]
    assert sorted(everything) == sorted(KEYS)
    own = [item for item, _ in recommender.top_k("a", CATALOGUE)]
    assert own == [item for item in everything if item not in names([1, 2, 3])]
    named = [item for item, _ in recommender.top_k("a", CATALOGUE, seen=names([7, 8]))]
    assert named == [item for item in everything if item not in names([7, 8])]
    with pytest.raises(LonghaulError, match="'window'"):
        recommender.top_k("a", seen="window")


def test_forgotten_users_leave_nothing_behind() -> None:
    recommender = Recommender(causal("elastic"))
    recommender.start({"a": names([1, 2, 3]), "b": names([4])})
    recommender.forget(["a", "a"])
    assert "a" not in recommender
    recommender.start({"c": names([9])})
    check_against_full_pass(recommender, {"b": [4], "c": [9]})
    with pytest.raises(LonghaulError, match="'a'"):
        recommender.top_k("a")


def test_threads_may_hammer_it() -> None:
    histories = random_histories(24, seed=7, longest=25)
    recommender = Recommender(causal("lrurec"))
    recommender.start({"shared": []})
    shares = [list(histories.items())[n::8] for n in range(8)]
    failures: list[BaseException] = []
    together = threading.Barrier(8)

    def work(share: list[tuple[str, list[int]]]) -> None:
        try:
            together.wait()
            for user, items in share:
                recommender.start({user: []})
                for item in items:
                    recommender.update([user, "shared"], [KEYS[item - 1]] * 2)
                    recommender.top_k([user, "shared"], 3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    check_against_full_pass(recommender, histories)
    shared = [KEYS.index(str(item)) + 1 for item in recommender.history("shared")]
    assert len(shared) == sum(map(len, histories.values()))
    check_against_full_pass(recommender, {"shared": shared})


def test_states_are_kept_and_refused_by_another_model(tmp_path: Path) -> None:
    histories = random_histories(50, seed=8)
    one = Recommender(causal("hydrarec"))
    feed(one, histories, seed=9)
    one.save(str(tmp_path / "states"))
    again = Recommender(causal("hydrarec"))
    again.restore(str(tmp_path / "states"))
    assert again.top_k(list(histories)) == one.top_k(list(histories))
    with pytest.raises(LonghaulError, match="has a state already"):
        again.restore(str(tmp_path / "states"))
    other = causal("hydrarec")
    with torch.no_grad():
        other.model.item_embedding.weight[3, 0] += 1e-6
    with pytest.raises(LonghaulError, match="made by another model"):
        Recommender(serve(other.model)).restore(str(tmp_path / "states"))


@pytest.mark.parametrize("form", CAUSAL)
def test_the_prepared_step_is_the_step(form: str) -> None:
    model = fresh(form)
    prepared = model.prepared_step()
    state: State = model.init_state(5)
    other = dict(state)
    with torch.no_grad():
        for items in torch.randint(1, CATALOGUE + 1, (6, 5)):
            hidden, state = model.step(items, state)
            found, other = prepared(items, other)
            torch.testing.assert_close(found, hidden)
    for key, value in state.items():
        torch.testing.assert_close(other[key], value)


@pytest.mark.parametrize("form", UNLIMITED)
def test_a_state_takes_the_bytes_that_are_told(form: str) -> None:
    served = causal(form)
    slots = Slots(served, room=8)
    held = sum(t.numel() * t.element_size() for t in [slots.hidden, *slots.state.values()])
    assert held == 8 * served.bytes_per_user()


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 14))
def test_best_items_are_those_of_the_evaluation(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    hidden = torch.from_numpy(rng.integers(-1, 2, (5, 4)).astype(np.float32))
    table = torch.from_numpy(rng.integers(-1, 2, (11, 4)).astype(np.float32))
    bias = torch.from_numpy(rng.integers(0, 2, 11).astype(np.float32))
    seen = [rng.integers(1, 11, rng.integers(0, 9)) for _ in range(5)]
    items, scores = best_items(hidden, table, bias, k, seen)
    offsets = torch.tensor([0, *map(len, seen)]).cumsum(0)
    given_seen = torch.from_numpy(np.concatenate(seen)), offsets
    wanted, values = top_k(DenseScores(hidden @ table.T + bias), k, given_seen)
    assert items.tolist() == wanted.tolist()
    assert scores.tolist() == values.tolist()


def test_scores_that_are_no_numbers_are_refused() -> None:
    table = torch.ones(4, 2)
    table[2, 1] = torch.nan
    with pytest.raises(LonghaulError, match="diverged"):
        best_items(torch.ones(1, 2), table, None, 2, [np.empty(0, np.int64)])


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)))
def test_string_keys_come_back(texts: list[str]) -> None:
    keys = np.array([text.encode() for text in texts], dtype=np.bytes_)
    assert as_list(from_tensors(to_tensors(keys))) == texts


@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=1), st.integers(-9, 9))
def test_keys_are_found_whatever_their_order(keys: list[int], other: int) -> None:
    items = ItemKeys(np.array(keys, np.int64))
    assert items.ids(keys).tolist() == list(range(1, len(keys) + 1))
    wanted = keys.index(other) + 1 if other in keys else 0
    assert items.find(np.array([other])).tolist() == [wanted]
