"""Evaluation against the protocol taken literally, user by user, from the raw histories."""

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.batch import PackedBatch
from pipeline.errors import LonghaulError
from pipeline.evaluate import DenseScores, ModelScorer, Protocol, Result, blocks, evaluate, top_k
from pipeline.evaluate.blocks import plan_blocks, read_block
from pipeline.manifest import open_dataset
from pipeline.prepare import PrepareOptions, prepare
from tests.evaluate.support import (
    DecayModel,
    User,
    WindowScorer,
    oracle_metrics,
    parts,
    question,
    random_users,
    write_dataset,
)

CATALOGUE = 25
KS = (1, 3, 5, 10)
PROTOCOLS = [
    Protocol(split=split, targets=targets, seen=seen, max_history=length, ks=KS)
    for (split, targets), (seen, length) in product(
        product(("validation", "test"), ("next", "all_in_window")),
        (("none", 200), ("window", 4), ("history", 4)),
    )
]


def label(protocol: Protocol) -> str:
    return f"{protocol.split}-{protocol.targets}-{protocol.seen}-{protocol.max_history}"


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, and more than one batch in some, in a data set of a few hundred events."""
    monkeypatch.setattr(blocks, "BATCH_TOKENS", 800)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=label)
def test_metrics_are_those_of_the_protocol(tmp_path: Path, protocol: Protocol) -> None:
    users = random_users(80, CATALOGUE, seed=2)
    scorer = WindowScorer(CATALOGUE)
    result = evaluate(write_dataset(tmp_path, users, CATALOGUE), scorer, protocol)

    asked = [q for q in (question(user, protocol) for user in users) if q]
    rows = [
        oracle_metrics(scorer.of(window).numpy(), targets, seen, KS)
        for window, targets, seen in asked
    ]
    number = sum(len(targets) for _, targets, _ in asked)
    for name, found in result.metrics.items():
        weights = [len(t) for _, t, _ in asked] if name == "mean_rank" else None
        assert found == pytest.approx(np.average([row[name] for row in rows], weights=weights))
    assert result.metrics.keys() == rows[0].keys()
    assert result.expected.keys() == result.metrics.keys() - {"mrr"}
    assert result.expected["ndcg@5"] > result.metrics["ndcg@5"]  # the scorer has many ties

    # Everybody with an event in the part is scored, nobody else, and it is said.
    assert result.users == len(rows) == sum(bool(parts(user, protocol)[1]) for user in users)
    assert sum(result.skipped.values()) == len(users) - result.users > 0
    assert result.targets == number
    assert result.without_history == sum(window == [0] for window, _, _ in asked) > 0


def test_the_result_says_what_was_measured(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, random_users(30, CATALOGUE, seed=2), CATALOGUE)
    protocol = Protocol(split="validation", seen="none", users=12)
    seen_progress: list[tuple[int, int]] = []
    result = evaluate(
        dataset,
        WindowScorer(CATALOGUE),
        protocol,
        progress=lambda done, total: seen_progress.append((done, total)),
    )
    assert Result.model_validate_json(result.model_dump_json()) == result
    assert result.data == dataset.fingerprint
    assert result.protocol == protocol
    assert result.catalogue_size == CATALOGUE
    assert "count as higher" in result.tie_rule
    assert seen_progress[-1] == (12, 12)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("limit", [1, 2, 3, 10, 79, 80, 500])
def test_only_the_first_users(tmp_path: Path, limit: int) -> None:
    users = random_users(80, CATALOGUE, seed=2)
    users[0].split = (0, 0, 0, 0)
    dataset = write_dataset(tmp_path / "all", users, CATALOGUE)
    first = write_dataset(tmp_path / "first", users[:limit], CATALOGUE)
    scorer = WindowScorer(CATALOGUE)
    limited = evaluate(dataset, scorer, Protocol(users=limit))
    whole = evaluate(first, scorer, Protocol())
    assert (limited.metrics, limited.expected) == (whole.metrics, whole.expected)
    assert limited.users == whole.users
    assert limited.users + sum(limited.skipped.values()) == min(limit, 80)


def test_the_window_keeps_the_newest_events(tmp_path: Path) -> None:
    class Listener(WindowScorer):
        def __init__(self) -> None:
            super().__init__(CATALOGUE)
            self.windows: list[list[int]] = []

        def score(self, batch: PackedBatch) -> DenseScores:
            offsets = batch.offsets.tolist()
            self.windows += [batch.items[a:b].tolist() for a, b in pairwise(offsets)]
            return super().score(batch)

    # Train 1..6, a gap, validation at place 8, a gap, test at place 10.
    user = User(key=1, items=list(range(1, 13)), split=(6, 8, 9, 10))
    newcomer = User(key=2, items=[5, 6], split=(0, 0, 1, 1))
    dataset = write_dataset(tmp_path, [user, newcomer], CATALOGUE)
    for split, expected in (("validation", [[6, 7, 8], [0]]), ("test", [[8, 9, 10], [5]])):
        listener = Listener()
        evaluate(dataset, listener, Protocol(split=split, max_history=3))
        assert listener.windows == expected


@pytest.mark.usefixtures("small_batches")
def test_coverage_is_the_share_of_items_in_any_list(tmp_path: Path) -> None:
    users = random_users(12, CATALOGUE, seed=4)
    scorer = WindowScorer(CATALOGUE)
    protocol = Protocol(lists=True, seen="window", ks=(1, 3, CATALOGUE))
    result = evaluate(write_dataset(tmp_path, users, CATALOGUE), scorer, protocol)
    covered: dict[int, set[int]] = {k: set() for k in protocol.ks}
    for window, _, seen in (q for q in (question(user, protocol) for user in users) if q):
        scores = scorer.of(window).numpy()
        candidates = [i for i in range(1, CATALOGUE + 1) if i not in seen]
        best = sorted(candidates, key=lambda i: (-scores[i], i))
        for k, items in covered.items():
            items.update(best[:k])
    for k, items in covered.items():
        assert result.metrics[f"coverage@{k}"] == len(items) / CATALOGUE
    assert "coverage@1" not in result.expected


def test_a_model_is_scored_by_its_last_hidden_states(tmp_path: Path) -> None:
    users = random_users(40, CATALOGUE, seed=5)
    model = DecayModel(CATALOGUE)
    protocol = Protocol(seen="history", ks=KS, max_history=6)
    result = evaluate(write_dataset(tmp_path, users, CATALOGUE), ModelScorer(model), protocol)
    rows = []
    for window, targets, seen in (q for q in (question(user, protocol) for user in users) if q):
        items = torch.tensor(window)
        hidden = model.encode(PackedBatch(items, torch.tensor([0, len(items)]), items * 0))[-1]
        scores = (model.embedding @ hidden + model.bias).numpy()
        rows.append(oracle_metrics(scores, targets, seen, KS))
    for name, found in result.metrics.items():
        assert found == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-12)


@pytest.mark.parametrize("key", [1017, b"caf\xc3\xa9"])
def test_a_diverged_model_is_refused_by_user(tmp_path: Path, key: int | bytes) -> None:
    users = random_users(30, CATALOGUE, seed=2)
    users[17].split = (0, 1, 1, 1)
    users[17].items = [CATALOGUE, 1]
    if isinstance(key, bytes):
        for number, user in enumerate(users):
            user.key = b"%d" % number
    users[17].key = key
    for user in users[:17] + users[18:]:
        user.items = [min(item, CATALOGUE - 1) for item in user.items]
    model = DecayModel(CATALOGUE)
    model.embedding[CATALOGUE] = torch.nan
    table = model.embedding.nan_to_num()
    model.item_scores = lambda: (table, None)  # type: ignore[method-assign]
    told = key.decode() if isinstance(key, bytes) else key
    with pytest.raises(LonghaulError, match=rf"the score of item 1 for user {told} is nan"):
        evaluate(write_dataset(tmp_path, users, CATALOGUE), ModelScorer(model), Protocol())


def test_nobody_to_score(tmp_path: Path) -> None:
    users = [User(key=1, items=[1, 2], split=(2, 2, 2, 2))]
    dataset = write_dataset(tmp_path, users, CATALOGUE)
    with pytest.raises(LonghaulError, match=r"none of the 1 users looked at .* the test part"):
        evaluate(dataset, WindowScorer(CATALOGUE), Protocol())


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, random_users(12, CATALOGUE, seed=2), CATALOGUE)
    shard = tmp_path / "shards" / "00000.tar"
    content = bytearray(shard.read_bytes())
    content[int(dataset.start[2]) + 600] ^= 1
    shard.write_bytes(content)
    with pytest.raises(LonghaulError, match=r"member 000002 .* is damaged"):
        evaluate(dataset, WindowScorer(CATALOGUE), Protocol())


@pytest.mark.parametrize(
    ("field", "value"),
    [("ks", ()), ("ks", (0, 5)), ("ks", (5, 5)), ("max_history", 0), ("users", 0), ("k", 5)],
)
def test_protocols_that_make_no_sense(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Protocol.model_validate({field: value})


def test_list_lengths_are_sorted() -> None:
    assert Protocol(ks=(20, 5)).ks == (5, 20)


class TestBlocks:
    def test_every_member_is_in_one_block(self, tmp_path: Path) -> None:
        dataset = write_dataset(tmp_path, random_users(200, CATALOGUE, seed=6), CATALOGUE)
        for size in (1, 150, 400, 1_000, 10_000, 10**6):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(blocks, "BATCH_TOKENS", size)
                plan = plan_blocks(dataset, Protocol())
            assert [m for block in plan for m in block.members] == list(range(len(dataset)))
            assert sum(block.users for block in plan) == 200
            assert all(block.batches >= 1 for block in plan)

    def test_batches_are_as_many_as_planned_and_of_bounded_size(self, tmp_path: Path) -> None:
        users = random_users(300, CATALOGUE, seed=6, longest=60)
        dataset = write_dataset(tmp_path, users, CATALOGUE, per_member=50)
        protocol = Protocol(max_history=20, targets="all_in_window")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "BATCH_TOKENS", 1_500)
            keys = []
            for block in plan_blocks(dataset, protocol):
                batches, without_target, _ = read_block(dataset, block, protocol)
                assert len(batches) == block.batches > 2
                scored = sum(len(queries.keys) for queries in batches)
                assert scored + without_target == block.users
                for queries in batches:
                    cost = len(queries.batch.items) + blocks.USER_TOKENS * len(queries.keys)
                    assert cost <= 1_500 + 20 + blocks.USER_TOKENS
                    keys += queries.keys.tolist()
        assert keys == [user.key for user in users if user.split[3] < len(user.items)]

    def test_a_batch_without_users_still_counts(self, tmp_path: Path) -> None:
        users = [User(key=u, items=[1, 2, 3], split=(3, 3, 3, 3)) for u in range(4)]
        users.append(User(key=4, items=[1, 2, 3], split=(2, 2, 2, 2)))
        dataset = write_dataset(tmp_path, users, CATALOGUE, per_member=2)
        scorer = WindowScorer(CATALOGUE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "BATCH_TOKENS", 1)
            planned = sum(block.batches for block in plan_blocks(dataset, Protocol()))
            result = evaluate(dataset, scorer, Protocol())
        assert result.users == 1
        assert scorer.calls == planned > 3


def test_events_at_one_time_keep_the_order_of_the_log(tmp_path: Path) -> None:
    """Ties in time reach evaluation in the order of the rows: the last one is the target."""
    rng = np.random.default_rng(0)
    items = {user: rng.permutation(np.arange(1, 41))[:20].tolist() for user in range(30)}
    rows = [(user, item, place // 7) for user in items for place, item in enumerate(items[user])]
    log = tmp_path / "log.txt"
    log.write_text("".join(f"{user} {item} {time}\n" for user, item, time in rows))
    prepare(
        PrepareOptions(
            inputs=[str(log)],
            output=str(tmp_path / "set"),
            columns=["user", "item", "timestamp"],
            timestamp="timestamp",
        )
    )
    dataset = open_dataset(str(tmp_path / "set"))
    found = {}
    for block in plan_blocks(dataset, Protocol()):
        for queries in read_block(dataset, block, Protocol())[0]:
            windows = np.split(queries.batch.items.numpy(), queries.batch.offsets[1:-1].numpy())
            for key, window, target in zip(
                queries.keys.tolist(), windows, queries.targets.tolist(), strict=True
            ):
                found[key] = [*window.tolist(), target]
    catalogue = sorted({item for history in items.values() for item in history})
    assert {u: [catalogue[i - 1] for i in h] for u, h in found.items()} == items


def test_top_k_serves_a_scorer(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, random_users(20, CATALOGUE, seed=2), CATALOGUE)
    (block,) = plan_blocks(dataset, Protocol())
    (queries,) = read_block(dataset, block, Protocol(seen="history"))[0]
    items, _ = top_k(WindowScorer(CATALOGUE).score(queries.batch), 5, queries.seen)
    assert queries.seen is not None
    seen = np.split(queries.seen[0].numpy(), queries.seen[1][1:-1].numpy())
    for row, out in zip(items, seen, strict=True):
        assert not set(row.tolist()) & set(out.tolist()) - {0}
