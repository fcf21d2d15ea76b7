"""A data set that is extended: against one prepared at once, by hand, and what is shared."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset, open_dataset
from pipeline.prepare import PrepareOptions, prepare
from tests.prepare.oracle import History, Key, check_contract, counts, read_back, run, table
from tests.train.runs import longhaul

COLUMNS = ["user", "item", "time", "action"]
READ = {"columns": COLUMNS, "timestamp": "time", "action": "action"}


def extended(base: Dataset, new: str, folder: Path, **options: Any) -> Dataset:
    (folder / "new.txt").write_text(new)
    prepare(
        PrepareOptions(
            inputs=[f"{folder}/new.txt"], output=f"{folder}/next", append=base.url, **options
        )
    )
    return open_dataset(f"{folder}/next")


def first(old: str, folder: Path, **options: Any) -> Dataset:
    (folder / "old.txt").write_text(old)
    return run(folder / "old.txt", folder / "base", **READ, **options)


def item_keys(dataset: Dataset) -> list[Key]:
    return list(dataset.read_items().column("key").to_pylist())


OLD = "1 a 10 view\n1 b 20 view\n1 c 30 buy\n2 a 10 view\n2 c 40 view\n"


def test_by_hand(tmp_path: Path) -> None:
    base = first(OLD, tmp_path)
    found = extended(base, "2 d 35 like\n3 b 50 view\n3 0 60 view\n2 a 70 view\n", tmp_path)
    assert item_keys(found) == ["a", "b", "c", "0", "d"]  # new ones behind, sorted
    histories = read_back(found)
    assert histories[1] == History(
        ["a", "b", "c"], [10, 20, 30], ["view", "view", "buy"], (1, 1, 2, 2)
    )
    # A late event takes its place in time.
    assert histories[2].items == ["a", "d", "c", "a"]
    assert histories[2].marks == (2, 2, 3, 3)
    assert histories[3] == History(["b", "0"], [50, 60], ["view", "view"], (2, 2, 2, 2))
    assert found.manifest.actions == ["buy", "view", "like"]
    assert counts(found) == {"events_read": 4, "users": 3, "items": 5, "events": 9}
    base_of = found.manifest.lineage.base
    assert base_of is not None
    assert (base_of.url, base_of.fingerprint) == (base.url, base.fingerprint)
    items = table(found.url, "items.parquet")
    assert items["events"] == [3, 2, 2, 1, 1]
    assert items["train_events"] == [2, 1, 0, 1, 1]


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 6), st.sampled_from("abcdef"), st.integers(0, 30), st.sampled_from("xyz")
    ),
    min_size=1,
    max_size=40,
)


def lines(events: list[tuple[int, str, int, str]]) -> str:
    return "".join(f"{u} {i} {t} {a}\n" for u, i, t, a in events)


@settings(deadline=None, max_examples=40)
@given(old=EVENTS, new=EVENTS, repeats=st.sampled_from(["none", "consecutive", "all"]))
def test_as_if_prepared_at_once(
    old: list[Any], new: list[Any], repeats: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """New events in the future, and no count to filter by: the histories are those of all."""
    folder = tmp_path_factory.mktemp("append")
    new = [(user, item, time + 31, action) for user, item, time, action in new]
    base = first(lines(old), folder, shard_bytes=40, repeats=repeats)
    try:
        found = extended(base, lines(new), folder)
    except LonghaulError as error:
        assert "repeats removed the last" in str(error)  # noqa: PT017
        return
    (folder / "all.txt").write_text(lines(old + new))
    whole = run(folder / "all.txt", folder / "whole", **READ, repeats=repeats)
    assert read_back(found) == dict(sorted_as(read_back(whole), read_back(found)))
    assert sorted(item_keys(found)) == item_keys(whole)
    assert item_keys(found)[: len(item_keys(base))] == item_keys(base)


def sorted_as(histories: dict[Key, History], like: dict[Key, History]) -> list[tuple[Key, History]]:
    assert list(histories) == list(like)  # by (hash, key), in whatever shard
    return list(histories.items())


def test_shards_without_new_events_are_shared(tmp_path: Path) -> None:
    old = "".join(f"{user} {'abcd'[n % 4]} {n} view\n" for user in range(40) for n in range(6))
    base = first(old, tmp_path, shard_bytes=400)
    assert len(base.manifest.shards) > 5
    found = extended(base, "7 e 99 view\n", tmp_path)
    shared = [file for file in found.manifest.shards if file.path.startswith(base.url)]
    assert len(shared) == len(base.manifest.shards) - 1
    written = list((tmp_path / "next").rglob("*.tar"))
    assert len(written) == 1
    before, after = read_back(base), read_back(found)
    assert after.pop(7).items == [*before.pop(7).items, "e"]
    assert after == before
    # And again on top of it, with references to both.
    third = PrepareOptions(
        inputs=[f"{tmp_path}/new.txt"], output=f"{tmp_path}/third", append=found.url
    )
    prepare(third)
    last = open_dataset(third.output)
    assert read_back(last)[7].items[-2:] == ["e", "e"]
    assert {Path(file.path).parts[-3] for file in last.manifest.shards if "/" in file.path[8:]} == {
        "base"
    }


def test_filters_hold_for_what_is_new(tmp_path: Path) -> None:
    base = first(OLD, tmp_path, min_item_events=1, min_user_events=2)
    base = run(tmp_path / "old.txt", tmp_path / "two", **READ, min_item_events=2, min_user_events=2)
    # b was rare and is gone: user 1 has a, c. Now b is new, and twice there.
    assert item_keys(base) == ["a", "c"]
    new = "9 b 50 view\n1 b 60 view\n9 z 70 view\n8 a 70 view\n2 a 80 view\n"
    found = extended(base, new, tmp_path)
    # z is rare, and then 9 and 8 have one event each; so b is left with that of user 1.
    assert {user: history.items for user, history in read_back(found).items()} == {
        1: ["a", "c", "b"],
        2: ["a", "c", "a"],
    }
    assert item_keys(found) == ["a", "c", "b"]
    assert counts(found) == {
        "events_read": 5,
        "min_item_events": 1,
        "min_user_events": 2,
        "users": 2,
        "items": 3,
        "events": 6,
    }


def test_the_windows_of_a_split_move_for_everybody(tmp_path: Path) -> None:
    old = "".join(f"{user} a {time} view\n" for user in range(30) for time in range(0, 100, 10))
    base = first(old, tmp_path, shard_bytes=300, split="time", validation="20s", test="20s")
    found = extended(base, "3 b 120 view\n3 b 130 view\n", tmp_path)
    assert found.manifest.split.test == (111, 131)
    assert {history.marks for user, history in read_back(found).items() if user != 3} == {
        (10, 10, 10, 10)
    }
    assert read_back(found)[3].marks == (10, 10, 10, 10)
    assert not [file for file in found.manifest.shards if file.path.startswith("/")]
    check_contract_of_extended(found, base)


def check_contract_of_extended(found: Dataset, base: Dataset) -> None:
    histories = read_back(found)
    assert found.manifest.users == len(histories)
    assert found.manifest.events == sum(len(h.items) for h in histories.values())
    for shard in range(len(found.manifest.shards)):
        keys = found.read_users(shard).column("key").to_pylist()
        assert set(keys) <= set(histories)
    assert base.fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"repeats": "all"}, "repeats is that of the data set which append names"),
        ({"min_item_events": 3}, "min_item_events is that of the data set"),
        ({"timestamp_unit": "ms"}, "timestamp_unit: the times of"),
    ],
)
def test_what_belongs_to_the_set_is_refused(
    options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    base = first(OLD, tmp_path)
    with pytest.raises((LonghaulError, ValueError), match=told):
        extended(base, "1 a 99 view\n", tmp_path, **options)


def test_ids_of_another_kind_are_refused(tmp_path: Path) -> None:
    base = first("1 5 10 view\n", tmp_path)
    with pytest.raises(LonghaulError) as error:
        extended(base, "1 x 99 view\n", tmp_path)
    assert str(error.value) == (
        f"the item ids of {base.url} are integers, those of the new events are not"
    )
    assert not (tmp_path / "next").exists()


def test_the_base_is_never_the_output(tmp_path: Path) -> None:
    base = first(OLD, tmp_path)
    (tmp_path / "new.txt").write_text("1 a 99 view\n")
    for output in (base.url, f"{base.url}/next"):
        with pytest.raises(LonghaulError, match="output"):
            prepare(
                PrepareOptions(
                    inputs=[f"{tmp_path}/new.txt"], output=output, append=base.url, overwrite=True
                )
            )
    check_contract(open_dataset(base.url))


def of_movielens(folder: Path) -> Dataset:
    (folder / "ratings.dat").write_text("1::10::5::978300760\n1::11::3::978302109\n")
    return run(folder / "ratings.dat", folder / "base", source="movielens")


def add(base: Dataset, path: Path, **options: Any) -> Dataset:
    output = f"{path}-out"
    prepare(PrepareOptions(inputs=[str(path)], output=output, append=base.url, **options))
    return open_dataset(output)


def test_files_of_the_same_source_and_others(tmp_path: Path) -> None:
    base = of_movielens(tmp_path)
    (tmp_path / "new.dat").write_text("1::12::5::978302200\n")
    assert read_back(add(base, tmp_path / "new.dat"))[1].items == [10, 11, 12]
    (tmp_path / "new.csv").write_text("user,item,when\n1,13,978302200\n1,,978302200\n")
    own = {"user": "user", "item": "item", "timestamp": "when"}
    found = add(base, tmp_path / "new.csv", **own, bad_rows="skip", most_bad_rows=0.5)
    assert read_back(found)[1].items == [10, 11, 13]
    assert counts(found)["bad_rows"] == 1
    assert (tmp_path / "new.csv-out" / "bad_rows.json").exists()


def test_times_in_another_unit(tmp_path: Path) -> None:
    base = of_movielens(tmp_path)
    (tmp_path / "a.csv").write_text("user,item,when\n1,13,978302200000\n")
    own = {"user": "user", "item": "item", "timestamp": "when"}
    with pytest.raises(LonghaulError, match="timestamps are taken for seconds"):
        add(base, tmp_path / "a.csv", **own)
    assert add(base, tmp_path / "a.csv", **own, timestamp_unit="s").manifest.events == 3
    (tmp_path / "b.csv").write_text("user_id,parent_asin,rating,timestamp\n1,13,5,978302200000\n")
    with pytest.raises(LonghaulError) as error:
        add(base, tmp_path / "b.csv", source="amazon")
    assert str(error.value) == (
        f"timestamps of {base.url} are in s, those of {tmp_path}/b.csv in ms"
    )
    (tmp_path / "c.inter").write_text("user_id:token\titem_id:token\n1\t13\n")
    with pytest.raises(LonghaulError) as error:
        add(base, tmp_path / "c.inter", source="recbole")
    assert str(error.value) == (
        f"{base.url} has a column for timestamp, {tmp_path}/c.inter has none"
    )


def test_the_command_takes_the_rest_from_the_base(tmp_path: Path) -> None:
    base = first(OLD, tmp_path, min_user_events=2)
    (tmp_path / "new.txt").write_text("1 a 99 view\n7 a 99 view\n")
    said = longhaul(
        *("prepare", f"{tmp_path}/new.txt", "--append", base.url),
        *("--output", f"{tmp_path}/next"),
    )
    assert said.returncode == 0, said.stderr
    assert open_dataset(f"{tmp_path}/next").manifest.users == 2
    refused = longhaul(
        *("prepare", f"{tmp_path}/new.txt", "--append", base.url),
        *("--output", f"{tmp_path}/third", "--min-user-events", "3"),
    )
    assert refused.returncode == 1
    assert "min_user_events is that of the data set which append names" in refused.stderr
