"""The data card against counts by hand and by brute force."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prepare import layout
from pipeline.prepare.card import Card
from pipeline.prepare.card_page import write_page
from tests.prepare.oracle import run

LOG = """\
1 10 86399
1 10 86399
1 11 86399
1 10 86399
1 10 86400
2 10 86400
2 12 200000
3 12 -1
"""


def card(log: str, folder: Path, **options: Any) -> Card:
    (folder / "log.txt").write_text(log)
    run(folder / "log.txt", folder / "out", columns=["user", "item", "time"], **options)
    return Card.model_validate(json.loads((folder / "out" / "card.json").read_text()))


def test_a_log_by_hand(tmp_path: Path) -> None:
    found = card(LOG, tmp_path, timestamp="time", repeats="consecutive")
    # User 1 has three events tied to the one before; two of them repeat item 10.
    assert (found.ties, found.duplicates) == (3, 2)
    assert found.days == {"1969-12-31": 1, "1970-01-01": 4, "1970-01-02": 2, "1970-01-03": 1}
    assert (found.first_event, found.last_event) == ("1969-12-31", "1970-01-03")
    assert found.counts["repeats"] == 2
    # Lengths are of what is left: 1 keeps 10, 11, 10; 2 keeps both; 3 its one.
    assert found.length_histogram == [(1, 1, 1), (2, 2, 1), (3, 3, 1)]
    assert found.mean_length == 2.0
    assert found.length_quantiles["0.5"] == 2
    assert found.popularity == [(1, 3), (2, 2), (3, 1)]
    assert found.top_items == {"0.001": 0.5, "0.01": 0.5, "0.1": 0.5, "0.5": pytest.approx(5 / 6)}


def test_without_times_nothing_is_told_of_them(tmp_path: Path) -> None:
    found = card(LOG, tmp_path)
    assert (found.ties, found.duplicates, found.first_event, found.days) == (None, None, None, {})


@settings(deadline=None, max_examples=30)
@given(
    events=st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=60
    )
)
def test_brute_force(
    events: list[tuple[int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = "".join(f"{user} {item} {time}\n" for user, item, time in events)
    found = card(log, tmp_path_factory.mktemp("card"), timestamp="time")
    moments = Counter((user, time) for user, _, time in events)
    assert found.ties == sum(count - 1 for count in moments.values())
    assert found.duplicates == sum(count - 1 for count in Counter(events).values())
    lengths = Counter(Counter(user for user, _, _ in events).values())
    for start, stop, users in found.length_histogram:
        assert users == sum(lengths[length] for length in range(start, stop + 1))
    assert sum(users for _, _, users in found.length_histogram) == found.users
    by_item = sorted(Counter(item for _, item, _ in events).values(), reverse=True)
    assert found.popularity == list(enumerate(by_item, start=1))


def test_how_the_work_was_cut_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = "".join(f"{n % 37} {n % 11} {n // 3 * 5000}\n" for n in range(3000))
    whole = card(log, tmp_path, timestamp="time")
    monkeypatch.setattr(layout, "MOST_EVENTS", 50)
    parted = card(log, tmp_path, timestamp="time", shard_bytes=600, overwrite=True)
    assert parted == whole


def test_the_page_tells_what_the_card_does(tmp_path: Path) -> None:
    card(LOG, tmp_path, timestamp="time")
    page = Path(write_page(str(tmp_path / "out"))).read_text()
    for told in ("1969-12-31 to 1970-01-03", "<td>3 events at the time", "data:image/png;base64,"):
        assert told in page
    again = card(LOG, tmp_path, timestamp="time", overwrite=True)
    assert again.users == 3
    assert not (tmp_path / "out" / "card.html").exists()  # of the old one
