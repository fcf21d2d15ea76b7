"""The page of a run: what it tells is what the run's files hold, and nothing in it is markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.evaluate.of_run import evaluations_in
from pipeline.manifest import Dataset
from pipeline.report.page import by_protocol, report_of, write_report
from pipeline.report.records import records_of
from pipeline.train.run import metrics_files, read_metrics
from tests.train.runs import longhaul, recipe, train_here

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Headings, rows of tables, pictures and links of a page whose tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.sources: list[str] = []
        self.scripts = 0
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.sources += [value for name in ("src", "href") if (value := found.get(name))]
        self.scripts += tag == "script"
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_the_page_holds_every_evaluation_with_its_interval(run: Recipe) -> None:
    page = Page(report_of(run).page)
    evaluations = evaluations_in(run.run_url)
    assert len(evaluations) == 5
    for one in evaluations:
        value, width = one.result.metrics["ndcg@10"], one.result.half_widths["ndcg@10"]
        (row,) = [
            cells
            for cells in page.rows
            if cells[0] == one.label and f"{value:.4f} ±{width:.4f}" in cells
        ]
        assert row[-1] == f"{one.result.users:,}"
    tables = by_protocol(evaluations)
    assert sorted(len(table) for table in tables) == [1, 4]
    # Groups: a row a group, a column a scorer.
    (table,) = [table for table in tables if len(table) == 4]
    group = table[0].result.groups["history"]["5-9"]
    (row,) = [cells for cells in page.rows if cells[0] == "5-9"]
    assert row[1] == f"{group.metrics['ndcg@10']:.4f} ±{group.half_widths['ndcg@10']:.4f}"
    assert (len(row), row[-1]) == (6, f"{group.users} users")


def test_the_page_stands_alone_and_tells_how_the_run_stands(run: Recipe) -> None:
    page = Page(report_of(run).page)
    assert page.scripts == 0
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert len(page.sources) == 4
    facts = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert facts["State"] == "done at step 12 of 12"
    best = max(line["validation/ndcg@10"] for line in records_of(run).validated)
    assert facts["Best validation ndcg@10"] == f"{best:.4f}"
    attempts = [row for row in page.rows if len(row) == 7 and row[0] in ("1", "2")]
    assert [row[1] for row in attempts] == ["1 to 7", "8 to 12"]


def test_wall_time_by_part_is_what_the_lines_tell(run: Recipe) -> None:
    """Steps and pauses are all there is between the first and the last line of an attempt."""
    lines = [read_metrics(file) for file in metrics_files(run.run_url)]
    told = [line for attempt in lines for line in attempt if "loss" in line]
    found = records_of(run).seconds()
    steps = sum(line["seconds/training"] for line in told)
    parts = ("wait", "agree", "forward", "backward", "exchange", "update", "other")
    assert sum(found[part] for part in parts) == pytest.approx(steps)
    assert all(seconds >= 0 for seconds in found.values())
    head = [row for row in Page(report_of(run).page).rows if row[0] == "wall time"]
    assert head == [["wall time", "", "share"]]
    assert found["backward"] == sum(line["seconds/backward"] for line in told) > 0
    assert found["update"] > 0
    assert found["saving"] > 0
    validations = [line["seconds"] for attempt in lines for line in attempt if "seconds" in line]
    assert (len(validations), found["validating"]) == (3, sum(validations))
    for attempt in lines:
        trained = [line for line in attempt if "loss" in line]
        inside = sum(line["seconds/training"] + line["seconds/saving"] for line in trained[1:])
        inside += sum(
            line["seconds"]
            for line in attempt
            if "seconds" in line and trained[0]["step"] <= line["step"] < trained[-1]["step"]
        )
        assert inside == pytest.approx(trained[-1]["time"] - trained[0]["time"], abs=0.1)
        for line in trained:
            assert line["data_wait_share"] * line["seconds/training"] == pytest.approx(
                line["seconds/wait"]
            )


def test_what_others_wrote_is_escaped(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, tracking__tags=["<script>alert(1)</script>"])
    train_here(wanted)
    state = Path(wanted.run_url, "state.json")
    document = json.loads(state.read_text())
    state.write_text(json.dumps(document | {"state": "failed", "reason": "<img src=x> & more"}))
    facts = Path(wanted.run_url, "attempts", "attempt-1.json")
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"host": "</table><b>host"}))
    page = Page(report_of(wanted).page)
    assert page.scripts == 0
    assert not [source for source in page.sources if not source.startswith("data:")]
    assert "failed at step 12 of 12: <img src=x> & more" in [row[-1] for row in page.rows]
    assert "</table><b>host" in [cell for row in page.rows for cell in row]


def test_a_run_without_validation_or_evaluation_has_a_page(
    small_set: Dataset, tmp_path: Path
) -> None:
    wanted = recipe(small_set, tmp_path, train__steps=1)
    train_here(wanted)
    found = report_of(wanted)
    assert found.pictures.keys() == {"report", "course", "speed"}
    assert "How it ranks" not in found.page


def test_lines_of_before_have_no_wall_time_by_part(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, train__steps=3)
    train_here(wanted)
    (file,) = Path(wanted.run_url, "metrics").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith("seconds/")} for line in lines]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    assert "wall time" not in [row[0] for row in Page(report_of(wanted).page).rows]


def test_the_command_writes_page_and_pictures(run: Recipe, tmp_path: Path) -> None:
    said = longhaul("report", run.run_url, "--output", str(tmp_path), "--examples", "2")
    assert said.returncode == 0, said.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        *("report.html", "report.png", "course.png", "speed.png", "groups.png"),
    }
    for picture in tmp_path.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(re.findall("<h3>User ", (tmp_path / "report.html").read_text())) == 2


def test_a_run_that_has_not_begun_is_told(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path)
    Path(wanted.run_url).mkdir()
    Path(wanted.run_url, "config.yaml").write_text(wanted.to_yaml())
    with pytest.raises(LonghaulError, match="has logged no training step yet"):
        write_report(wanted.run_url, str(tmp_path / "page"))
    assert not (tmp_path / "page").exists()
