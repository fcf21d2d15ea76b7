"""Small data sets, scorers whose arithmetic is exact, and oracles that take it all literally."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from models.batch import PackedBatch
from pipeline import storage
from pipeline.evaluate import DenseScores, Protocol
from pipeline.manifest import (
    INDEX,
    INDEX_SCHEMA,
    MANIFEST,
    SCHEMA_VERSION,
    Dataset,
    File,
    Lineage,
    Manifest,
    Split,
    open_dataset,
)
from pipeline.member import SHARD_END, Member, encode_member, sha256


@dataclass
class User:
    """A history and where it is split: train end, validation start and end, test start."""

    key: int | bytes
    items: list[int]
    split: tuple[int, int, int, int]
    times: list[int] | None = None


def random_users(
    count: int, catalogue: int, seed: int, longest: int = 30, times: bool = False
) -> list[User]:
    """Users split anywhere: with and without gaps, empty parts and empty histories."""
    rng = np.random.default_rng(seed)
    users = []
    for key in range(count):
        length = int(rng.integers(1, longest + 1))
        split = np.sort(rng.integers(0, length + 1, 4))
        if rng.random() < 0.3:
            split[:3] = 0  # nothing before validation or, where that is empty, before test
            split[2:] = rng.integers(0, 2)
        users.append(
            User(
                key=1000 + key,
                items=rng.integers(1, catalogue + 1, length).tolist(),
                split=tuple(int(p) for p in split),
                times=np.sort(rng.integers(0, 30 * 86_400, length)).tolist() if times else None,
            )
        )
    return users


def write_dataset(
    folder: Path,
    users: Sequence[User],
    catalogue: int,
    per_member: int = 3,
    split: Split | None = None,
) -> Dataset:
    """A data set of one shard that holds ``users`` in this order."""
    content, rows = b"", []
    for number, first in enumerate(range(0, len(users), per_member)):
        here = users[first : first + per_member]
        lengths = [len(user.items) for user in here]
        times = [t for user in here for t in user.times or ()]
        member = Member(
            items=np.array([i for user in here for i in user.items], np.uint32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64),
            users=np.array([user.key for user in here]),
            splits=np.array([user.split for user in here], np.uint32),
            timestamps=np.array(times, np.int64) if times else None,
        )
        encoded, head = encode_member(f"{number:06d}", member)
        rows.append(
            {
                "shard": "shards/00000.tar",
                "member": f"{number:06d}",
                "start": len(content),
                "stop": len(content) + len(encoded),
                "sha256": sha256(encoded),
                "head": head,
                "head_sha256": sha256(encoded[:head]),
                "users": len(here),
                "events": sum(lengths),
                "train_events": sum(user.split[0] for user in here),
            }
        )
        content += encoded
    url = str(folder)
    storage.write_bytes(storage.join(url, "shards", "00000.tar"), content + SHARD_END)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), sink)
    index = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(url, INDEX), index)
    file = File(path=INDEX, bytes=len(index), sha256=sha256(index))
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        catalogue_size=catalogue,
        users=len(users),
        events=sum(len(user.items) for user in users),
        members=len(rows),
        user_type="string" if isinstance(users[0].key, bytes) else "int64",
        item_type="int64",
        timestamp_unit="s" if users[0].times else None,
        actions=None,
        split=split or Split(kind="leave_one_out"),
        counts={},
        index=file,
        items=file,
        user_keys=[],
        shards=[],
        lineage=Lineage(inputs=[], options={}, version="0"),
    )
    storage.write_json(storage.join(url, MANIFEST), manifest.model_dump(mode="json"))
    return open_dataset(url)


class WindowScorer:
    """Small integers that depend on the first and last event of the window and on its length.

    So every score is exact, ties are many, and a window cut anywhere else scores otherwise.
    """

    def __init__(self, catalogue: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.by_last, self.by_first, self.by_length = (
            torch.from_numpy(rng.integers(0, 3, (catalogue + 1, catalogue + 1))).float()
            for _ in range(3)
        )
        self.calls = 0

    def score(self, batch: PackedBatch) -> DenseScores:
        self.calls += 1
        rows = [
            self.of(batch.items[begin:end].tolist())
            for begin, end in pairwise(batch.offsets.tolist())
        ]
        return DenseScores(torch.stack(rows))

    def of(self, window: list[int]) -> torch.Tensor:
        return (
            self.by_last[window[-1]]
            + self.by_first[window[0]]
            + self.by_length[len(window) % len(self.by_length)]
        )


class DecayModel:
    """A small causal model: h_t = 0.8 h_{t-1} + W e(x_t), scored against the embedding."""

    def __init__(self, catalogue: int, d: int = 24) -> None:
        generator = torch.Generator().manual_seed(7)
        self.embedding = torch.randn(catalogue + 1, d, generator=generator)
        self.weight = torch.randn(d, d, generator=generator) / d**0.5
        self.bias = torch.randn(catalogue + 1, generator=generator)
        self.encoded: dict[tuple[bytes, bytes], bytes] = {}  # batch -> hidden, to the last bit

    def encode(self, batch: PackedBatch) -> torch.Tensor:
        drive = self.embedding[batch.items] @ self.weight
        hidden = torch.empty_like(drive)
        for begin, end in pairwise(batch.offsets.tolist()):
            state = torch.zeros(drive.shape[1])
            for t in range(begin, end):
                state = 0.8 * state + drive[t]
                hidden[t] = state
        key = batch.items.numpy().tobytes(), batch.offsets.numpy().tobytes()
        self.encoded[key] = hidden.numpy().tobytes()
        return hidden

    def item_scores(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.embedding, self.bias


def parts(user: User, protocol: Protocol) -> tuple[list[int], list[int]]:
    """What lies before the part that is predicted, and the part."""
    if protocol.split == "validation":
        return user.items[: user.split[1]], user.items[user.split[1] : user.split[2]]
    return user.items[: user.split[3]], user.items[user.split[3] :]


def question(user: User, protocol: Protocol) -> tuple[list[int], list[int], set[int]] | None:
    """A user's window, targets and seen items, taken literally from the protocol."""
    history, part = parts(user, protocol)
    if not part:
        return None
    window = history[-protocol.max_history :]
    targets = part[:1] if protocol.targets == "next" else sorted(set(part))
    seen = {"none": set(), "window": set(window), "history": set(history)}[protocol.seen]
    return window or [0], targets, seen


def oracle_metrics(
    scores: np.ndarray, targets: list[int], seen: set[int], ks: Sequence[int]
) -> dict[str, float]:
    """One user's metrics from the list itself, items that tie with a target before it."""
    wanted = set(targets)
    candidates = [i for i in range(1, len(scores)) if i in wanted or i not in seen]
    ranked = sorted(candidates, key=lambda i: (-scores[i], i in wanted))
    return list_metrics([item in wanted for item in ranked], ks)


def list_metrics(hit: Sequence[bool], ks: Sequence[int]) -> dict[str, float]:
    """Metrics of one ranked list, from which of its items are targets."""
    positions = [place for place, is_target in enumerate(hit, 1) if is_target]
    number = len(positions)
    metrics = {"mrr": 1 / positions[0], "mean_rank": sum(positions) / number}
    for k in ks:
        top = [p for p in positions if p <= k]
        ideal = sum(1 / np.log2(1 + p) for p in range(1, min(k, number) + 1))
        metrics[f"hr@{k}"] = float(bool(top))
        metrics[f"recall@{k}"] = len(top) / number
        metrics[f"ndcg@{k}"] = sum(1 / np.log2(1 + p) for p in top) / ideal
        metrics[f"mrr@{k}"] = 1 / top[0] if top else 0.0
    return metrics


def packed(lists: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids of many queries back to back, and their offsets."""
    ids = torch.tensor([item for one in lists for item in one], dtype=torch.int64)
    return ids, torch.tensor(np.concatenate([[0], np.cumsum([len(one) for one in lists])]))
