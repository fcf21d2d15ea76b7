"""Ranks and lists against sorting everything; scores that depend on nothing but query and item."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LonghaulError
from pipeline.evaluate import DenseScores, TableScores, lists, rank_targets, scores, top_k


@pytest.fixture(params=["small tiles", "real tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small tiles":
        monkeypatch.setitem(scores.TILES, "cpu", (4, 8))
        monkeypatch.setattr(lists, "_GROUP", 2)


def pack(lists: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.tensor([i for one in lists for i in one], dtype=torch.int64)
    return ids, torch.tensor(np.concatenate([[0], np.cumsum([len(one) for one in lists])])).long()


class Problem:
    """Small integers, so that fp32 is exact and ties are many."""

    def __init__(self, seed: int, n: int, items: int, biased: bool) -> None:
        rng = np.random.default_rng(seed)
        self.hidden = rng.integers(-2, 3, (n, 3))
        self.table = rng.integers(-2, 3, (items + 1, 3))
        self.bias = rng.integers(-1, 2, items + 1) if biased else None
        self.targets = [
            rng.choice(np.arange(1, items + 1), rng.integers(1, min(4, items + 1)), False).tolist()
            for _ in range(n)
        ]
        # Repeats, item 0 and targets among them.
        self.seen = [
            rng.integers(0, items + 1, rng.integers(0, 2 * items)).tolist() + targets[:1]
            for targets in self.targets
        ]
        self.dense = self.hidden @ self.table.T + (0 if self.bias is None else self.bias)

    def scores(self, kind: type[TableScores] = TableScores) -> TableScores:
        bias = None if self.bias is None else torch.from_numpy(self.bias).float()
        hidden, table = torch.from_numpy(self.hidden).float(), torch.from_numpy(self.table).float()
        return kind(hidden, table, bias)

    def rank(self, row: int, target: int, seen: bool) -> tuple[int, int]:
        """Higher and tied candidates, one by one."""
        higher = ties = 0
        for item in range(1, len(self.table)):
            masked = seen and item in self.seen[row] and item not in self.targets[row]
            if item == target or masked:
                continue
            higher += self.dense[row, item] > self.dense[row, target]
            ties += self.dense[row, item] == self.dense[row, target]
        return higher, ties


problems = st.builds(
    Problem,
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 11),
    items=st.integers(1, 30),
    biased=st.booleans(),
)


@pytest.mark.usefixtures("tiles")
class TestRanks:
    @settings(max_examples=60, deadline=None)
    @given(problem=problems, with_seen=st.booleans(), dense=st.booleans())
    def test_ranks_are_those_of_counting(
        self, problem: Problem, with_seen: bool, dense: bool
    ) -> None:
        scores = problem.scores()
        as_block = DenseScores(torch.from_numpy(problem.dense).double())
        targets, offsets = pack(problem.targets)
        seen = pack(problem.seen) if with_seen else None
        ranks = rank_targets(as_block if dense else scores, targets, offsets, seen)
        found = list(zip(ranks.higher.tolist(), ranks.ties.tolist(), strict=True))
        assert found == [
            problem.rank(row, target, with_seen)
            for row, targets in enumerate(problem.targets)
            for target in targets
        ]
        assert ranks.pessimistic.tolist() == [1 + h + t for h, t in found]
        assert ranks.expected.tolist() == [1 + h + t / 2 for h, t in found]

    @settings(max_examples=60, deadline=None)
    @given(problem=problems, with_seen=st.booleans(), k=st.integers(1, 40))
    def test_lists_are_those_of_sorting(self, problem: Problem, with_seen: bool, k: int) -> None:
        seen = problem.seen if with_seen else [[] for _ in problem.seen]
        items, values = top_k(problem.scores(), k, pack(seen))
        assert items.shape == values.shape == (len(seen), k)
        for row, out in enumerate(seen):
            candidates = [i for i in range(1, len(problem.table)) if i not in out]
            best = sorted(candidates, key=lambda i: (-problem.dense[row, i], i))[:k]
            fill = k - len(best)
            assert items[row].tolist() == best + [0] * fill
            expected = [float(problem.dense[row, i]) for i in best] + [-np.inf] * fill
            assert values[row].tolist() == expected

    @settings(max_examples=60, deadline=None)
    @given(problem=problems, k=st.integers(1, 12), data=st.data())
    def test_lists_of_candidates_are_those_of_sorting_them(
        self, problem: Problem, k: int, data: st.DataObject
    ) -> None:
        columns = len(problem.table)
        allowed = data.draw(st.lists(st.booleans(), min_size=columns, max_size=columns))
        dense = data.draw(st.booleans())
        block = DenseScores(torch.from_numpy(problem.dense).double())
        scores = block if dense else problem.scores()
        items, values = top_k(scores, k, pack(problem.seen), candidates=torch.tensor(allowed))
        for row, out in enumerate(problem.seen):
            left = [i for i in range(1, columns) if allowed[i] and i not in out]
            best = sorted(left, key=lambda i: (-problem.dense[row, i], i))[:k]
            assert items[row].tolist() == best + [0] * (k - len(best))
            assert values[row, : len(best)].tolist() == problem.dense[row, best].tolist()

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 12), rises=st.booleans())
    def test_scores_that_rise_or_fall_with_the_id(self, seed: int, k: int, rises: bool) -> None:
        rng = np.random.default_rng(seed)
        dense = np.sort(rng.integers(0, 20, (5, 61)).astype(np.float64), axis=1)
        dense = dense if rises else dense[:, ::-1].copy()
        items, _ = top_k(DenseScores(torch.from_numpy(dense)), k)
        for row, found in zip(dense, items.tolist(), strict=True):
            assert found == sorted(range(1, 61), key=lambda i: (-row[i], i))[:k]

    def test_a_wrong_guess_costs_a_pass_not_a_rank(self) -> None:
        class Misguided(TableScores):
            def guess(self, q: int, at: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
                return super().guess(q, at, targets) + 1

        problem = Problem(3, 11, 30, biased=True)
        targets, offsets = pack(problem.targets)
        right = rank_targets(problem.scores(), targets, offsets, pack(problem.seen))
        wrong = rank_targets(problem.scores(Misguided), targets, offsets, pack(problem.seen))
        assert np.array_equal(right.higher, wrong.higher)
        assert np.array_equal(right.ties, wrong.ties)


def a_model(n: int, items: int, d: int = 48) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(n, d, generator=generator),
        torch.randn(items + 1, d, generator=generator),
        torch.randn(items + 1, generator=generator),
    )


class TestFixedTiles:
    """Real values, real tiles: the same bits in whatever company a query is."""

    def test_scores_do_not_depend_on_the_other_queries(self) -> None:
        hidden, table, bias = a_model(300, 9000)
        items, values = top_k(TableScores(hidden, table, bias), 50)
        for part in (slice(0, 1), slice(0, 128), slice(0, 129), slice(170, 300)):
            alone, alone_values = top_k(TableScores(hidden[part], table, bias), 50)
            assert torch.equal(alone, items[part])
            assert torch.equal(alone_values, values[part])
        order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
        moved, moved_values = top_k(TableScores(hidden[order], table, bias), 50)
        assert torch.equal(moved, items[order])
        assert torch.equal(moved_values, values[order])

    def test_ranks_and_lists_agree(self) -> None:
        hidden, table, bias = a_model(300, 9000)
        seen = torch.randint(1, 9001, (300 * 40,)), torch.arange(301) * 40
        items, _ = top_k(TableScores(hidden, table, bias), 50, seen)
        for place in (0, 9, 49):
            ranks = rank_targets(TableScores(hidden, table, bias), items[:, place], seen=seen)
            assert (ranks.pessimistic == place + 1).all()

    def test_tiles_are_filled_up_with_zeros(self) -> None:
        hidden, table, _ = a_model(130, 5000)
        scores = TableScores(hidden, table)
        full = scores.tile(0, 0).clone()
        assert full.shape == scores.shape == (128, 4096)
        edge = scores.tile(1, 1)
        assert edge.shape == (128, 4096)
        assert edge[:2, :905].all()
        assert not edge[2:].any()
        assert not edge[:, 905:].any()
        assert torch.equal(scores.tile(0, 0), full)

    @pytest.mark.parametrize("precision", ["highest", "high", "medium"])
    def test_products_are_fp32_whatever_training_uses(self, precision: str) -> None:
        class Witness(TableScores):
            def tile(self, q: int, i: int) -> torch.Tensor:
                # What these stand for shows only on a device that has TF32 or bf16.
                assert torch.backends.cuda.matmul.fp32_precision == "ieee"
                assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
                return super().tile(q, i)

        hidden, table, bias = a_model(100, 5000)
        items, values = top_k(TableScores(hidden, table, bias), 20)
        torch.set_float32_matmul_precision(precision)
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = top_k(Witness(hidden, table, bias), 20)
                ranks = rank_targets(Witness(hidden, table, bias), items[:, 3])
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision("highest")
        assert torch.equal(found[0], items)
        assert torch.equal(found[1], values)
        assert (ranks.pessimistic == 4).all()

    def test_a_table_in_bf16_is_scored_in_fp32(self) -> None:
        hidden, table, _ = a_model(20, 5000)
        short = table.bfloat16()
        expected = top_k(TableScores(hidden, short.float()), 20)
        found = top_k(TableScores(hidden, short), 20)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        with pytest.raises(TypeError, match="float32"):
            TableScores(hidden.double(), table)


class TestRefusals:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("where", ["hidden", "table", "bias"])
    @pytest.mark.parametrize("seen", [True, False])
    def test_a_score_that_is_no_number(self, value: float, where: str, seen: bool) -> None:
        hidden, table, bias = a_model(140, 5000)
        tensor = {"hidden": hidden, "table": table, "bias": bias}[where]
        tensor[133 if where == "hidden" else 4500] = value
        scores = TableScores(hidden, table, bias)
        row = 133 if where == "hidden" else 0
        mask = (torch.tensor([4500]), torch.tensor([0] + [1] * 140)) if seen else None
        with pytest.raises(LonghaulError, match=rf"for user u{row} is (nan|-?inf)"):
            rank_targets(scores, torch.ones(140).long(), None, mask, "user u{}".format)
        with pytest.raises(LonghaulError, match=rf"for user u{row} is (nan|-?inf)"):
            top_k(scores, 3, mask, "user u{}".format)

    def test_an_overflow_in_the_product(self) -> None:
        hidden, table, _ = a_model(3, 50)
        hidden[1] = 1e30
        table[20] = 1e30
        with pytest.raises(LonghaulError, match="item 20 for query 1 is inf"):
            rank_targets(TableScores(hidden, table), torch.tensor([1, 2, 3]))

    def test_large_scores_are_no_error_and_neither_is_item_0(self) -> None:
        hidden, table = torch.ones(2, 1), torch.full((50, 1), 1e38)
        table[7] = 2e38
        table[0] = torch.nan
        ranks = rank_targets(TableScores(hidden, table), torch.tensor([7, 8]))
        assert ranks.pessimistic.tolist() == [1, 49]

    def test_ids_outside_the_catalogue(self) -> None:
        hidden, table, _ = a_model(1, 50)
        scores = TableScores(hidden, table)
        for target in (0, 51):
            with pytest.raises(LonghaulError, match=f"target {target} is not in the catalogue"):
                rank_targets(scores, torch.tensor([target]))
        seen = torch.tensor([51]), torch.tensor([0, 1])
        with pytest.raises(LonghaulError, match="seen item 51 is not in the catalogue of 50"):
            top_k(scores, 3, seen)
        with pytest.raises(ValueError, match="of 51 items"):
            top_k(scores, 3, candidates=torch.ones(50, dtype=torch.bool))


def test_a_device_that_computes_at_random_is_refused() -> None:
    class Fickle(TableScores):
        def tile(self, q: int, i: int) -> torch.Tensor:
            return super().tile(q, i) + torch.rand(self.shape)

    hidden, table, bias = a_model(3, 50)
    with pytest.raises(LonghaulError, match="different scores for the same tile"):
        rank_targets(Fickle(hidden, table, bias), torch.tensor([1, 2, 3]))


def test_parameters_are_scored_without_gradients() -> None:
    hidden, table, bias = (torch.nn.Parameter(part) for part in a_model(3, 50))
    items, values = top_k(TableScores(hidden, table, bias), 5)
    assert not values.requires_grad
    ranks = rank_targets(TableScores(hidden, table, bias), items[:, 0])
    assert ranks.pessimistic.tolist() == [1, 1, 1]


def test_no_queries() -> None:
    _, table, _ = a_model(1, 50)
    nobody = TableScores(torch.empty(0, 48), table)
    assert len(rank_targets(nobody, torch.empty(0).long()).higher) == 0
    assert top_k(nobody, 5)[0].shape == (0, 5)


def test_counts_past_float32_do_not_tie() -> None:
    counts = torch.tensor([0, 2**24, 2**24 + 1, 5], dtype=torch.float64)
    ranks = rank_targets(DenseScores(counts.expand(3, 4)), torch.tensor([1, 2, 3]))
    assert ranks.pessimistic.tolist() == [2, 1, 3]
