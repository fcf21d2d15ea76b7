"""States in files: new events on top of them give what a full pass over all of them gives."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import transient
from pipeline.errors import DamagedError, LonghaulError
from pipeline.manifest import Dataset
from pipeline.serve import states
from pipeline.serve.of_run import array_of, item_keys
from pipeline.serve.recommender import Recommender
from pipeline.serve.replay import apply_events, read_events, start_states
from pipeline.serve.states import hashes_of, open_states, read_part
from tests.conftest import prepare_histories
from tests.models.test_models import BOTH_WAYS, CAUSAL
from tests.serve.support import KEYS, assert_same_lists, both_ways, causal, full_pass, names

Histories = dict[Any, list[int]]


def random_histories(seed: int, users: int = 40, longest: int = 20) -> Histories:
    rng = np.random.default_rng(seed)
    return {
        f"user-{u}": rng.integers(1, 31, rng.integers(1, longest)).tolist() for u in range(users)
    }


def write_events(path: Path, events: list[tuple[Any, int, int]]) -> str:
    """Events (user, item id, time) as a file in this order."""
    columns = {
        "user": [user for user, _, _ in events],
        "item": [KEYS[item - 1] for _, item, _ in events],
        "timestamp": [time for _, _, time in events],
    }
    kinds = {"user": pa.string(), "item": pa.string(), "timestamp": pa.int64()}
    pq.write_table(pa.table(columns, schema=pa.schema(kinds)), path)
    return str(path)


def lists_in(path: Path | str) -> dict[Any, list[tuple[str, float]]]:
    rows = pq.read_table(path).to_pylist()
    return {row["user"]: list(zip(row["items"], row["scores"], strict=True)) for row in rows}


def split(histories: Histories, seed: int) -> tuple[Histories, list[tuple[Any, int, int]]]:
    """A beginning of each history, none of some, and the rest as events in no order of time.

    Several events of a user may have one time; those stand in their order.
    """
    rng = np.random.default_rng(seed)
    before, events = {}, []
    for user, items in histories.items():
        cut = int(rng.integers(0, len(items) + 1))
        if cut or rng.integers(0, 2):
            before[user] = items[:cut]
        times = np.sort(rng.integers(0, 6, len(items) - cut)).tolist()
        events.append([(user, i, t) for i, t in zip(items[cut:], times, strict=True)])
    mixed = []
    while any(events):
        # Any user's next block of one time, so that a user's times may stand in any order ...
        share = events[int(rng.choice([n for n, left in enumerate(events) if left]))]
        last = share[-1][2] if rng.integers(0, 2) else share[0][2]
        mixed += [event for event in share if event[2] == last]
        share[:] = [event for event in share if event[2] != last]
    return before, mixed


def check(served: Any, histories: Histories, folder: Path, seed: int, rounds: int = 2) -> None:
    """States from beginnings, events in ``rounds`` files: the lists are those of a full pass."""
    before, events = split(histories, seed)
    recommender = Recommender(served)
    recommender.start({user: names(items) for user, items in before.items()})
    state = folder / "states-0"
    recommender.save(str(state))
    now = {user: list(items) for user, items in before.items()}
    times = np.array_split(np.arange(6), rounds)
    for number, part in enumerate(times):
        chosen = [event for event in events if event[2] in part]
        file = write_events(folder / f"events-{number}.parquet", chosen)
        output, after = folder / f"lists-{number}.parquet", folder / f"states-{number + 1}"
        apply_events(served, file, str(state), str(output), str(after), k=7)
        touched = set()
        for user, item, _ in sorted(chosen, key=lambda event: event[2]):
            now.setdefault(user, []).append(item)
            touched.add(user)
        found = lists_in(output)
        assert found.keys() == touched
        if touched:
            wanted = full_pass(served, [now[user] for user in found], 7)
            assert_same_lists(list(found.values()), wanted)
        state = after
    again = Recommender(served)
    again.restore(str(state))
    assert {user: again.history(user) for user in now} == {u: names(h) for u, h in now.items()}
    assert len(again) == len(now)
    alive = [user for user, items in now.items() if items]
    wanted = full_pass(served, [now[user] for user in alive], 7)
    assert_same_lists(again.top_k(alive, 7), wanted)


@pytest.mark.parametrize("form", CAUSAL)
def test_new_events_give_what_a_full_pass_gives(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "PART_BYTES", 4096)
    check(causal(form), random_histories(seed=1), tmp_path, seed=2)


@pytest.mark.parametrize("form", BOTH_WAYS)
def test_models_that_look_both_ways_keep_the_histories(form: str, tmp_path: Path) -> None:
    check(both_ways(form), random_histories(seed=3), tmp_path, seed=4)


def test_past_max_history_the_newest_window_is_encoded(tmp_path: Path) -> None:
    served = causal("sasrec", "re-encode", max_history=7)
    check(served, random_histories(seed=5), tmp_path, seed=6)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), rounds=st.integers(1, 6))
def test_any_split_of_any_histories(
    seed: int, rounds: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    histories = random_histories(seed, users=6, longest=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "PART_BYTES", 1500)
        folder = tmp_path_factory.mktemp("split")
        check(causal("lrurec"), histories, folder, seed, rounds)


def integer_users(folder: Path, histories: list[list[int]]) -> Dataset:
    return prepare_histories(histories, folder)


def test_states_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "PART_BYTES", 2048)
    histories = list(random_histories(seed=7, users=60).values())
    dataset = integer_users(tmp_path, [[*range(1, 31)], *histories])
    served = causal("lrurec")
    with pytest.raises(LonghaulError, match="another catalogue"):
        start_states(served, dataset, "x", str(tmp_path / "s"), k=5)
    object.__setattr__(served, "keys", item_keys(dataset))  # 1 to 30
    output, folder = tmp_path / "lists.parquet", tmp_path / "states"
    manifest = start_states(served, dataset, str(output), str(folder), k=5)
    assert (manifest.users, manifest.events) == (dataset.manifest.users, dataset.manifest.events)
    assert len(manifest.parts) > 5
    assert max(part.bytes for part in manifest.parts) < 3 * 2048 + 4096
    found = lists_in(output)
    wanted = full_pass(served, [[*range(1, 31)], *histories], 5)
    as_keys = [[(KEYS[int(item) - 1], score) for item, score in found[u]] for u in range(61)]
    assert_same_lists(as_keys, wanted)
    opened = open_states(str(folder), served)
    users = np.concatenate([read_part(opened, entry).users for entry in opened.parts])
    assert sorted(users.tolist()) == list(range(61))
    assert (np.diff(hashes_of(users).astype(np.float64)) >= 0).all()


def test_growing_states_are_cut_into_more_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "PART_BYTES", 4096)
    served = causal("lrurec")
    recommender = Recommender(served)
    recommender.start({f"user-{u}": names([1 + u % 30]) for u in range(10)})
    recommender.save(str(tmp_path / "one"))
    events = [(f"user-{u}", 1 + u % 30, u) for u in range(100)]
    file = write_events(tmp_path / "events.parquet", events)
    arguments = (served, file, str(tmp_path / "one"), str(tmp_path / "l"), str(tmp_path / "two"))
    assert apply_events(*arguments, k=3)[0] == 100
    before, after = (open_states(str(tmp_path / name), served).parts for name in ("one", "two"))
    assert len(after) > 5 * len(before)
    assert max(part.users for part in after) < 30
    again = Recommender(served)
    again.restore(str(tmp_path / "two"))
    wanted = full_pass(served, [[1 + u % 30] * (2 if u < 10 else 1) for u in range(100)], 3)
    assert_same_lists(again.top_k([f"user-{u}" for u in range(100)], 3), wanted)


def small_states(folder: Path) -> Any:
    served = causal("lrurec")
    recommender = Recommender(served)
    recommender.start({"a": names([1, 2]), "b": names([3])})
    recommender.save(str(folder / "states"))
    return served


def test_what_is_wrong_with_events_is_named(tmp_path: Path) -> None:
    served = small_states(tmp_path)
    state = str(tmp_path / "states")

    def refused(match: str, table: dict[str, Any], **given: Any) -> None:
        file = tmp_path / "events.parquet"
        pq.write_table(pa.table(table), file)
        with pytest.raises(LonghaulError, match=match):
            apply_events(
                served, str(file), state, str(tmp_path / "o"), str(tmp_path / "n"), k=3, **given
            )
        assert not (tmp_path / "o").exists()
        assert not (tmp_path / "n").exists()

    good = {"user": ["a", "c"], "item": names([1, 2]), "timestamp": [2, 1]}
    refused("item 'hat' is not in the catalogue.*1 of 2", {**good, "item": ["hat", KEYS[0]]})
    refused("no column 'timestamp', it has user, item:", {k: good[k] for k in ("user", "item")})
    refused("column 'user' is int64, but the states' users are strings", {**good, "user": [1, 2]})
    refused("column 'item' is double", {**good, "item": [1.0, 2.0]})
    refused("column 'user' has an empty value", {**good, "user": ["a", None]})
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "mine").write_text("")
    pq.write_table(pa.table(good), tmp_path / "events.parquet")
    with pytest.raises(LonghaulError, match="is not empty"):
        apply_events(served, str(tmp_path / "events.parquet"), state, "o", str(tmp_path / "n"), k=3)
    assert (tmp_path / "n" / "mine").exists()


def test_unknown_items_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    served = small_states(tmp_path)
    table = {"who": ["a", "a", "a"], "what": [KEYS[4], "hat", KEYS[5]]}
    pq.write_table(pa.table(table), tmp_path / "e.parquet")
    touched, new = apply_events(
        served,
        str(tmp_path / "e.parquet"),
        str(tmp_path / "states"),
        str(tmp_path / "o"),
        k=3,
        columns=("who", "what"),
        skip_unknown_items=True,
    )
    assert (touched, new.items.tolist(), new.unknown) == (1, [5, 6], 1)
    assert_same_lists([lists_in(tmp_path / "o")["a"]], full_pass(served, [[1, 2, 5, 6]], 3))


def test_events_of_one_time_are_taken_as_they_stand(tmp_path: Path) -> None:
    served = small_states(tmp_path)
    events = [("a", 5, 3), ("b", 6, 1), ("a", 7, 1), ("a", 8, 3), ("b", 9, 1)]
    file = write_events(tmp_path / "events.parquet", events)
    found = read_events(file, served.keys, "string")
    assert found.users.tolist() == [b"b", b"a", b"b", b"a", b"a"]
    assert found.items.tolist() == [6, 7, 9, 5, 8]


def test_damaged_states_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transient, "_READS", 1)
    served = small_states(tmp_path)
    part = tmp_path / "states" / "part-00000.safetensors"
    whole = part.read_bytes()
    for damaged in (whole[:-7], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        part.write_bytes(damaged)
        with pytest.raises(DamagedError, match=r"part-00000\.safetensors is (cut|damaged)"):
            Recommender(served).restore(str(tmp_path / "states"))
    part.unlink()
    with pytest.raises(LonghaulError, match=r"part-00000\.safetensors: it does not exist"):
        Recommender(served).restore(str(tmp_path / "states"))
    manifest = tmp_path / "states" / "states.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema_version": 9}))
    with pytest.raises(LonghaulError, match="schema_version"):
        open_states(str(tmp_path / "states"), served)
    with pytest.raises(LonghaulError, match="no states at"):
        open_states(str(tmp_path / "elsewhere"), served)


def test_key_columns_of_any_layout() -> None:
    texts = ["b", "", "äöü", "long enough"]
    for kind in (pa.string(), pa.large_string()):
        column = pa.chunked_array(
            [pa.array(texts[:1], kind), pa.array(["x", *texts[1:]], kind)[1:]]
        )
        assert [key.decode() for key in array_of(column).tolist()] == texts
    assert array_of(pa.chunked_array([pa.array([3, 1], pa.int32())])).tolist() == [3, 1]
