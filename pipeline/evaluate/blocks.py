"""Which users are scored together: blocks of members, cut into packed batches.

Both follow from the data set and the protocol alone. So a user's batch, and with it his hidden
state to the last bit, is the same on any number of workers, and every worker knows without asking
how many batches each of the others will encode.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from models.batch import PackedBatch
from pipeline.evaluate.protocol import Protocol
from pipeline.evaluate.tiles import Packed
from pipeline.manifest import Dataset
from pipeline.member import TEST_START, TRAIN_END, VALIDATION_END, VALIDATION_START

# Cost of a batch: a token costs 1, a user as much as this many, for the ranking. That makes at most
# 1024 users a batch, and with windows of 1024 events still nearly a whole tile of scores: a tile
# takes the same time however few users it has.
BATCH_TOKENS = 131_072
USER_TOKENS = 128


@dataclass(frozen=True)
class Block:
    """Consecutive members that one worker scores, as ``batches`` batches.

    users: of these members, counted from the first; only the last block may have fewer than all.
    """

    members: range
    users: int
    batches: int


@dataclass(frozen=True, eq=False)
class Queries:
    """One batch of ``n`` users to score.

    batch: a segment a user, his newest events. keys: of the users, ``[n]``. targets: int64
    ``[m]``, ``offsets`` int64 ``[n + 1]``. seen: by the rule of the protocol, or None. history:
    int64 ``[n]``, the events before the part. known: bool ``[n]``, who has an event in training.
    """

    batch: PackedBatch
    keys: np.ndarray
    targets: torch.Tensor
    offsets: torch.Tensor
    seen: Packed | None
    history: np.ndarray
    known: np.ndarray

    def name(self, row: int) -> str:
        """User ``row`` in words, for errors."""
        if not len(self.keys):
            return "an empty history"
        key = self.keys[row]
        return f"user {key.decode() if isinstance(key, bytes) else key}"


def plan_blocks(dataset: Dataset, protocol: Protocol) -> list[Block]:
    """The blocks of a data set, in its order, from the counts in the index."""
    blocks = []
    left = int(dataset.users.sum()) if protocol.users is None else protocol.users
    first = users = cost = 0
    for member, (here, events) in enumerate(
        zip(dataset.users.tolist(), dataset.events.tolist(), strict=True)
    ):
        # At least a token each: an empty history is one.
        tokens = max(here, min(events, here * protocol.max_history))
        more = tokens + USER_TOKENS * here
        if users and (cost + more > BATCH_TOKENS or users >= left):
            blocks.append(_block(first, member, min(users, left), cost))
            left -= users
            first, users, cost = member, 0, 0
        if left <= 0:
            return blocks
        users, cost = users + here, cost + more
    if users:
        blocks.append(_block(first, len(dataset), min(users, left), cost))
    return blocks


def _block(first: int, stop: int, users: int, cost: int) -> Block:
    return Block(range(first, stop), users, -(-cost // BATCH_TOKENS))


def read_block(
    dataset: Dataset, block: Block, protocol: Protocol
) -> tuple[list[Queries], int, int]:
    """Its ``batches`` batches, some perhaps without users; users without target; without history.

    The batches hold, in order, the users who have an event in the part that is predicted. A user
    without history is given as the one token 0. Raises LonghaulError where a member is damaged.
    """
    members = [dataset.read(member) for member in block.members]
    nothing = np.zeros(1, np.uint32)
    items = np.concatenate([*(member.items for member in members), nothing]).astype(np.int64)
    keys = np.concatenate([member.users for member in members])[: block.users]
    lengths = np.concatenate([member.lengths() for member in members])
    splits = np.concatenate([member.splits for member in members]).astype(np.int64)
    home = np.cumsum(lengths) - lengths
    start, stop = splits[:, TEST_START], lengths
    if protocol.split == "validation":
        start, stop = splits[:, VALIDATION_START], splits[:, VALIDATION_END]

    scored = np.flatnonzero((start < stop)[: block.users])
    home, start, stop, keys = home[scored], start[scored], stop[scored], keys[scored]
    known = splits[scored, TRAIN_END] > 0
    window = np.minimum(start, protocol.max_history)
    begin = home + start - window
    # The empty history is the 0 that was put after the last item.
    begin, tokens = np.where(window, begin, len(items) - 1), np.maximum(window, 1)
    cost = np.cumsum(tokens + USER_TOKENS)
    shares = np.arange(1, block.batches) * (cost[-1] if len(cost) else 0) / block.batches
    cuts = [0, *np.searchsorted(cost, shares).tolist(), len(scored)]

    batches = []
    for low, high in pairwise(cuts):
        part = slice(low, high)
        ids, bounds = take(items, begin[part], tokens[part])
        packed = torch.from_numpy(ids), torch.from_numpy(bounds)
        first, last = home[part] + start[part], home[part] + stop[part]
        targets, offsets = _targets(items, first, last, protocol)
        seen: Packed | None = None
        if protocol.seen == "window":
            seen = packed
        elif protocol.seen == "history":
            everything = take(items, home[part], start[part])
            seen = torch.from_numpy(everything[0]), torch.from_numpy(everything[1])
        batches.append(
            Queries(
                batch=PackedBatch(*packed, torch.zeros_like(packed[0])) if len(ids) else NOBODY,
                keys=keys[part],
                targets=torch.from_numpy(targets),
                offsets=torch.from_numpy(offsets),
                seen=seen,
                history=start[part],
                known=known[part],
            )
        )
    return batches, block.users - len(scored), int((window == 0).sum())


NOBODY = PackedBatch(torch.zeros(1).long(), torch.tensor([0, 1]), torch.zeros(1).long())
"""Encoded where a worker has nobody, so that all encode equally often: sharded models need it."""


def nobody(protocol: Protocol) -> Queries:
    """What is asked where a worker has nobody and the others need it to rank theirs."""
    nothing, bounds = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    return Queries(
        batch=NOBODY,
        keys=np.zeros(0, np.int64),
        targets=nothing,
        offsets=bounds,
        seen=None if protocol.seen == "none" else (nothing, bounds),
        history=np.zeros(0, np.int64),
        known=np.zeros(0, bool),
    )


def _targets(
    items: np.ndarray, first: np.ndarray, stop: np.ndarray, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray]:
    """The items to predict from events ``first`` up to ``stop`` of each user, and their offsets."""
    if protocol.targets == "next":
        return items[first], np.arange(len(first) + 1)
    ids, bounds = take(items, first, stop - first)
    user = np.repeat(np.arange(len(first)), np.diff(bounds))
    # An item consumed twice is one target.
    base = int(items.max()) + 1
    user, ids = np.divmod(np.unique(user * base + ids), base)
    return ids, np.searchsorted(user, np.arange(len(first) + 1))


def take(
    items: np.ndarray, begin: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``items[begin : begin + length]`` of all users back to back, and their offsets."""
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    index = np.arange(bounds[-1]) + np.repeat(begin - bounds[:-1], lengths)
    return items[index], bounds
