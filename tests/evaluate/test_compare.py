"""Runs compared user by user: the numbers, what is refused, and what is evaluated on the way."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.evaluate import PerUserWriter, PopularityScorer, Protocol, Scorer, evaluate
from pipeline.evaluate.compare import Side, compare
from pipeline.evaluate.compare_runs import sides_of
from pipeline.evaluate.of_run import evaluations_in
from pipeline.evaluate.per_user import read_commit, read_parts
from pipeline.evaluate.show import picture_of_comparison, table_of_comparison
from pipeline.manifest import Dataset
from pipeline.world import current_world
from tests.conftest import prepare_histories, random_histories
from tests.evaluate.support import WindowScorer, random_users, write_dataset
from tests.train.runs import longhaul, recipe, train_here

CATALOGUE = 25
PROTOCOL = Protocol(seen="none", ks=(5, 10))


def side(
    name: str, scorer: Scorer, dataset: Dataset, folder: Path, protocol: Protocol = PROTOCOL
) -> Side:
    writer = PerUserWriter(str(folder / name), current_world())
    evaluate(dataset, scorer, protocol, per_user=writer)
    writer.commit(name, None, protocol, dataset)
    found = read_commit(str(folder / name))
    assert found is not None
    return Side(name, str(folder / name), found)


def column(of: Side, metric: str) -> np.ndarray:
    table = pa.concat_tables(read_parts(of.folder, of.found, [metric]))
    return table.column(metric).to_numpy()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    users = random_users(200, CATALOGUE, seed=3)
    return write_dataset(tmp_path_factory.mktemp("compared"), users, CATALOGUE)


def test_differences_are_paired(dataset: Dataset, tmp_path: Path) -> None:
    a, b = (side(f"s{seed}", WindowScorer(CATALOGUE, seed), dataset, tmp_path) for seed in (0, 1))
    c = side("counts", PopularityScorer(np.arange(CATALOGUE + 1)), dataset, tmp_path)
    metrics = ["ndcg@10", "mrr"]
    found = compare(a, [b, c], metrics, samples=2000)
    assert [(one.scorer, one.metric) for one in found.differences] == [
        (other.name, metric) for other in (b, c) for metric in metrics
    ]
    assert found.users == a.found.users
    for one in found.differences:
        other = {"s1": b, "counts": c}[one.scorer]
        differences = column(other, one.metric) - column(a, one.metric)
        assert one.difference == pytest.approx(differences.mean())
        assert one.mean == pytest.approx(column(other, one.metric).mean())
        assert one.baseline_mean == pytest.approx(column(a, one.metric).mean())
        half = 1.959964 * differences.std(ddof=1) / np.sqrt(len(differences))
        assert one.interval == pytest.approx((one.difference - half, one.difference + half))
        assert one.p <= one.p_corrected <= 1
    assert found.correction == "Holm, 4 tests"
    assert compare(a, [b], ["mrr"]).correction is None
    again = compare(a, [b, c], metrics, samples=2000)
    assert again == found


def test_the_same_scorer_does_not_differ(dataset: Dataset, tmp_path: Path) -> None:
    a, b = (side(name, WindowScorer(CATALOGUE), dataset, tmp_path) for name in "ab")
    (one,) = compare(a, [b], ["ndcg@5"], samples=100).differences
    assert (one.difference, one.interval, one.p) == (0, (0, 0), 1)


def test_table_and_picture(dataset: Dataset, tmp_path: Path) -> None:
    a, b = (side(f"s{seed}", WindowScorer(CATALOGUE, seed), dataset, tmp_path) for seed in (0, 1))
    found = compare(a, [b], ["ndcg@10", "mrr"], samples=100)
    table = table_of_comparison(found)
    assert table.row_count == 2
    assert "corrected (Holm, 2 tests)" in str(table.caption)
    assert picture_of_comparison(found).startswith(b"\x89PNG")


def test_what_cannot_be_compared(dataset: Dataset, tmp_path: Path) -> None:
    a = side("a", WindowScorer(CATALOGUE), dataset, tmp_path)
    other = write_dataset(tmp_path / "set", random_users(50, CATALOGUE, seed=4), CATALOGUE)
    b = side("b", WindowScorer(CATALOGUE), other, tmp_path)
    with pytest.raises(LonghaulError, match="a and b were evaluated on different data"):
        compare(a, [b], ["mrr"])
    shorter = PROTOCOL.model_copy(update={"max_history": 3, "seen": "window"})
    c = side("c", WindowScorer(CATALOGUE), dataset, tmp_path, shorter)
    with pytest.raises(
        LonghaulError, match=r"protocol: max_history 200 and 3; seen none and window; set one value"
    ):
        compare(a, [c], ["mrr"])
    with pytest.raises(LonghaulError, match=r"a metric 'ndgc@5'; did you mean 'ndcg@5'\?"):
        compare(a, [a], ["ndgc@5"])


def test_users_in_another_order_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    a = side("a", WindowScorer(CATALOGUE), dataset, tmp_path)
    fewer = PROTOCOL.model_copy(update={"users": 100})
    b = side("b", WindowScorer(CATALOGUE), dataset, tmp_path, fewer)
    posed = Side("b", b.folder, b.found.model_copy(update={"protocol": PROTOCOL}))
    with pytest.raises(LonghaulError, match="are not the same, in the same order"):
        compare(a, [posed], ["mrr"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Recipe]:
    """Two runs on one data set, of one name in different folders; a third on other data."""
    folder = tmp_path_factory.mktemp("runs")
    data = [
        prepare_histories(random_histories(200, 40, seed), folder / f"data-{seed}")
        for seed in (0, 1)
    ]
    recipes = [
        recipe(data[0], folder / "a", "same", train__steps=4),
        recipe(data[0], folder / "b", "same", train__steps=4, train__seed=5),
        recipe(data[1], folder / "c", "other", train__steps=4),
    ]
    for one in recipes:
        train_here(one)
    return recipes


def test_from_the_command_line(runs: list[Recipe], tmp_path: Path) -> None:
    a, b, c = (one.run_url for one in runs)
    arguments = ["--metric", "ndcg@10", "--metric", "mrr", "--output", str(tmp_path / "page")]
    said = longhaul("compare", a, b, "--baseline", b, *arguments, "--json")
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["baseline"] == b  # by its folder, since both have one name
    assert {one["scorer"] for one in found["differences"]} == {a}
    assert json.loads((tmp_path / "page" / "compare.json").read_text()) == found
    assert (tmp_path / "page" / "compare.png").read_bytes().startswith(b"\x89PNG")
    refused = longhaul("compare", a, c)
    assert refused.returncode == 1
    assert "same and other were evaluated on different data: fingerprints" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_what_was_evaluated_is_not_again(
    runs: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def sides(changes: dict[str, object], baseline: str | None) -> tuple[Side, list[Side]]:
        told.clear()
        return sides_of(
            [one.run_url for one in runs[:2]],
            changes,
            baseline,
            None,
            told.append,
            lambda name, done, total: told.append(name),
        )

    changes: dict[str, object] = {"ks": [3, 7]}
    reference, others = sides(changes, None)
    assert "lrurec" in told
    assert (reference.name, [one.name for one in others]) == (
        runs[0].run_url,
        [runs[1].run_url],
    )
    assert sides(changes, None) == (reference, others)
    assert told == []
    popular, both = sides(changes, "co-occurrence")
    assert set(told) == {"co-occurrence"}
    assert (popular.name, both) == ("co-occurrence", [reference, *others])
    kept = [one for one in evaluations_in(runs[0].run_url) if one.result.protocol.ks == (3, 7)]
    assert {one.scorer for one in kept} == {"lrurec", "co-occurrence"}
    with pytest.raises(LonghaulError, match=r"the baseline 'popular' is none of .* popularity"):
        sides(changes, "popular")
