"""What README and docs tell: their links lead somewhere, their metrics are in a file they link."""

import re
from pathlib import Path

import pytest

from tests.train.runs import ROOT

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^()\s#]+)[^()\s]*\)")
_METRIC = re.compile(r"(?<![\d.])\.\d{4}\b")  # as the tables have them: .1928


def links(doc: Path) -> list[Path]:
    """The files that it links."""
    found = _LINK.findall(doc.read_text())
    return [doc.parent / link for link in found if "://" not in link]


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.stem)
def test_links_lead_to_a_file(doc: Path) -> None:
    assert [link for link in links(doc) if not link.exists()] == []


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: doc.stem)
def test_metrics_are_in_a_linked_page_or_recipe(doc: Path) -> None:
    linked = [link for link in links(doc) if link.suffix in (".md", ".yaml")]
    measured = {metric for file in linked for metric in _METRIC.findall(file.read_text())}
    assert [told for told in _METRIC.findall(doc.read_text()) if told not in measured] == []
