"""Each filter against a hand-made log; their order; what the counts say."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LonghaulError
from tests.prepare.oracle import counts, read_back, run


def prepared(log: str, folder: Path, **options: Any) -> tuple[dict[Any, list[Any]], dict[str, int]]:
    """Items by user, and the counts, of lines "user item time action rating"."""
    (folder / "log.txt").write_text(log)
    options.setdefault("columns", ["user", "item", "time", "action", "rating"])
    dataset = run(folder / "log.txt", folder / "out", **options)
    return {user: history.items for user, history in read_back(dataset).items()}, counts(dataset)


LOG = """\
1 10 1 view 5
1 11 2 buy 3
1 11 3 buy 2
1 10 4 view 4
2 10 1 view 1
2 12 2 cart 5
"""


def test_rating(tmp_path: Path) -> None:
    items, removed = prepared(LOG, tmp_path, rating="rating", min_rating=3)
    assert items == {1: [10, 11, 10], 2: [12]}
    assert list(removed.items()) == [
        ("events_read", 6),
        ("min_rating", 2),
        ("users", 2),
        ("items", 3),
        ("events", 4),
    ]


def test_actions(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(LOG)
    columns = ["user", "item", "time", "action", "rating"]
    dataset = run(
        tmp_path / "log.txt",
        tmp_path / "out",
        columns=columns,
        action="action",
        keep_actions=["view", "cart"],
    )
    assert {u: (h.items, h.actions) for u, h in read_back(dataset).items()} == {
        1: ([10, 10], ["view", "view"]),
        2: ([10, 12], ["view", "cart"]),
    }
    assert dataset.manifest.actions == ["cart", "view"]
    assert counts(dataset)["keep_actions"] == 2


def test_consecutive_repeats(tmp_path: Path) -> None:
    items, removed = prepared(
        "1 5 9\n1 5 2\n1 6 3\n1 5 1\n1 5 4\n2 5 1\n",
        tmp_path,
        columns=["user", "item", "time"],
        timestamp="time",
        repeats="consecutive",
    )
    assert items == {1: [5, 6, 5], 2: [5]}
    assert removed["repeats"] == 2


def test_all_repeats(tmp_path: Path) -> None:
    items, removed = prepared(
        "1 5 9\n1 7 2\n1 6 3\n1 7 1\n1 5 4\n2 5 1\n",
        tmp_path,
        columns=["user", "item", "time"],
        timestamp="time",
        repeats="all",
    )
    assert items == {1: [7, 6, 5], 2: [5]}
    assert removed["repeats"] == 2


# Item 3 is rare. Without it user 3 is short; without user 3 item 2 is rare; and so on.
CHAIN = "1 1\n1 1\n2 1\n2 2\n3 2\n3 3\n"


def test_one_pass_takes_items_first_and_each_once(tmp_path: Path) -> None:
    items, removed = prepared(
        CHAIN, tmp_path, columns=["user", "item"], min_item_events=2, min_user_events=2
    )
    assert items == {1: [1, 1], 2: [1, 2]}  # item 2 is left with one event
    assert (removed["min_item_events"], removed["min_user_events"]) == (1, 1)


def test_k_core_goes_on_until_both_hold(tmp_path: Path) -> None:
    items, removed = prepared(
        CHAIN,
        tmp_path,
        columns=["user", "item"],
        min_item_events=2,
        min_user_events=2,
        count_filter="k_core",
    )
    assert items == {1: [1, 1]}
    assert removed == {"events_read": 6, "k_core": 4, "users": 1, "items": 1, "events": 2}


def test_repeats_go_before_counts(tmp_path: Path) -> None:
    items, _ = prepared(
        "1 5\n1 5\n1 5\n2 6\n3 6\n",
        tmp_path,
        columns=["user", "item"],
        repeats="all",
        min_item_events=2,
    )
    assert items == {2: [6], 3: [6]}


@pytest.mark.parametrize(
    ("options", "filter_name"),
    [
        ({"rating": "rating", "min_rating": 9}, "min_rating"),
        ({"min_item_events": 4}, "min_item_events"),
        ({"min_user_events": 5}, "min_user_events"),
        ({"min_user_events": 5, "count_filter": "k_core"}, "k_core"),
        (
            {
                "timestamp": "time",
                "split": "time",
                "train_end": "-3",
                "validation": "-2/-1",
                "test": "-1/0",
            },
            "after_test",
        ),
    ],
)
def test_nothing_left_names_the_filter(
    options: dict[str, Any], filter_name: str, tmp_path: Path
) -> None:
    with pytest.raises(LonghaulError) as error:
        prepared(LOG, tmp_path, **options)
    assert str(error.value) == (
        f"no events left: {filter_name} removed the last 6 of 6 read; relax it"
    )


def test_unknown_action(tmp_path: Path) -> None:
    with pytest.raises(LonghaulError) as error:
        prepared(LOG, tmp_path, action="action", keep_actions=["veiw"])
    assert str(error.value) == (
        "keep_actions names 'veiw', which no event has; the data have 'buy', 'cart', 'view'"
    )


@settings(deadline=None, max_examples=50)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40),
    item_least=st.integers(1, 4),
    user_least=st.integers(1, 4),
)
def test_k_core_is_the_largest(
    pairs: list[tuple[int, int]],
    item_least: int,
    user_least: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """What is kept satisfies both counts, and removing in any other order keeps no more."""
    log = "".join(f"{user} {item}\n" for user, item in pairs)
    options: dict[str, Any] = {
        "columns": ["user", "item"],
        "min_item_events": item_least,
        "min_user_events": user_least,
        "count_filter": "k_core",
    }
    core = list(pairs)
    while True:  # one event at a time, from the end
        for n in reversed(range(len(core))):
            user, item = core[n]
            if (
                sum(u == user for u, _ in core) < user_least
                or sum(i == item for _, i in core) < item_least
            ):
                del core[n]
                break
        else:
            break
    folder = tmp_path_factory.mktemp("core")
    if not core:
        with pytest.raises(LonghaulError, match="k_core removed the last"):
            prepared(log, folder, **options)
        return
    expected: dict[int, list[int]] = {}
    for user, item in core:
        expected.setdefault(user, []).append(item)
    assert prepared(log, folder, **options)[0] == expected
