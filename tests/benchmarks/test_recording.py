"""What of today's ratios counts as dropped, and the JSON that is compared."""

import datetime
import json
import math

import pytest

from benchmarks import report
from benchmarks.recording import compare, recorded_ratios
from benchmarks.report import write_json, write_result


def dropped(found: dict[str, float], recorded: dict[str, float]) -> list[str]:
    return [one.name for one in compare(found, recorded) if one.dropped]


@pytest.mark.parametrize(
    ("found", "drops"),
    [(10.0, False), (12.0, False), (8.0, False), (7.99, True), (0.0, True), (math.nan, True)],
)
def test_more_than_a_fifth_below_the_record_is_a_drop(found, drops):
    assert dropped({"speed": found}, {"speed": 10.0}) == (["speed"] if drops else [])


def test_only_what_is_on_both_sides_can_drop():
    compared = compare({"new": 1.0, "kept": 2.0}, {"kept": 2.0, "gone": 3.0})
    assert [one.name for one in compared] == ["kept", "gone", "new"]
    assert not any(one.dropped for one in compared)
    said = [one.row().split(" | ")[-1].removesuffix(" |") for one in compared]
    assert said == ["kept", "not measured", "not recorded"]


def test_a_dropped_ratio_is_told_in_its_row():
    (one,) = compare({"speed": 7.0}, {"speed": 10.0})
    assert one.row() == "| speed | 10.00 | 7.00 | **dropped** |"


def test_records_are_read_as_they_were_written(tmp_path):
    write_json(tmp_path / "one.json", {"a": 1.5, "b": 2.0})
    write_json(tmp_path / "two.json", {"c": 3.0})
    assert recorded_ratios(tmp_path) == {"a": 1.5, "b": 2.0, "c": 3.0}
    assert recorded_ratios(tmp_path / "empty") == {}


@pytest.mark.parametrize("text", ["{", "{}", '{"measured": 3}', '{"measured": {"a": "fast"}}'])
def test_a_record_that_is_none_is_refused_by_its_name(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json: .*record it again"):
        recorded_ratios(tmp_path)


def test_a_result_lies_there_as_markdown_and_as_json(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    write_result("speed", ["# Speed", "", "fast"], {"a": 1.5})
    today = datetime.date.today().isoformat()
    assert (tmp_path / "results" / f"{today}-speed.md").read_text() == "# Speed\n\nfast\n"
    kept = json.loads((tmp_path / "results" / f"{today}-speed.json").read_text())
    assert kept["measured"] == {"a": 1.5}
    assert kept["date"] == today
    assert {"commit", "processor", "cores", "versions"} <= kept.keys()
    assert kept["versions"]["torch"]


def test_a_result_without_numbers_leaves_no_json(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    write_result("speed", ["# Speed"])
    assert not list(tmp_path.glob("*.json"))
