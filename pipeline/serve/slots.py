"""The states of many users in contiguous tensors: a slot is a row of each.

A batch of events is one gather of rows, one step, one scatter, whoever they belong to.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from models.base import State
from models.batch import PackedBatch
from pipeline.errors import LonghaulError
from pipeline.serve.model import ServedModel

_STEP_USERS = 4096  # gathered at once, at most
_STEP_BYTES = 64 << 20  # of their states
_ENCODE_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class Rows:
    """What is kept of ``n`` users, on the CPU, as it lies in a file.

    state: as the model's, ``[n, ...]`` each. hidden: fp32 ``[n, d]``. items: u32 ``[T]``, the
    histories back to back, oldest first; offsets: i64 ``[n + 1]``.
    """

    state: State
    hidden: torch.Tensor
    items: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.hidden)

    def between(self, first: int, last: int) -> "Rows":
        """Of the users ``first`` up to ``last``."""
        begin, end = self.offsets[first], self.offsets[last]
        return Rows(
            {key: value[first:last] for key, value in self.state.items()},
            self.hidden[first:last],
            self.items[begin:end],
            self.offsets[first : last + 1] - begin,
        )


class Slots:
    """hidden: fp32 ``[room, d]``, the last hidden state of each slot.

    state: as the model's, ``[room, ...]`` each; empty where the model looks both ways. histories:
    item ids of each slot, oldest first.
    """

    def __init__(self, served: ServedModel, room: int = 0) -> None:
        self.served = served
        model = served.model
        with torch.inference_mode():
            self._first: State = model.init_state(1) if served.steps else {}
            self._step = model.prepared_step() if served.steps else None
            self.state = {key: value.repeat_interleave(0, 0) for key, value in self._first.items()}
            self.hidden = torch.empty(0, model.config.d, device=served.device)
            # What a user without history is recommended by.
            self._nobody = self._encode([np.zeros(1, np.int64)])[0]
        self.histories: list[array[int]] = []
        self._free: list[int] = []
        self._grow(room)
        most = sum(value.numel() * value.element_size() for value in self._first.values())
        self._at_once = max(1, min(_STEP_USERS, _STEP_BYTES // max(1, most)))

    def add(self, users: int) -> np.ndarray:
        """Slots for users without history, i64 ``[users]``."""
        if users > len(self._free):
            self._grow(max(2 * len(self.histories), len(self.histories) + users))
        slots = np.array([self._free.pop() for _ in range(users)], np.int64)
        rows = torch.from_numpy(slots).to(self.served.device)
        with torch.inference_mode():
            for key, first in self._first.items():
                self.state[key][rows] = first
            self.hidden[rows] = self._nobody
        for slot in slots.tolist():
            self.histories[slot] = array("I")
        return slots

    def remove(self, slots: np.ndarray) -> None:
        """Forget these users."""
        for slot in slots.tolist():
            self.histories[slot] = array("I")
            self._free.append(slot)

    def put(self, rows: Rows) -> np.ndarray:
        """Slots for users with a state, i64 ``[n]``."""
        slots = self.add(len(rows))
        at = torch.from_numpy(slots).to(self.served.device)
        with torch.inference_mode():
            for key, value in self.state.items():
                value.index_copy_(0, at, rows.state[key].to(value.device))
            self.hidden.index_copy_(0, at, rows.hidden.to(self.hidden.device))
        for number, slot in enumerate(slots.tolist()):
            begin, end = rows.offsets[number : number + 2]
            self.histories[slot] = array("I", rows.items[begin:end].tobytes())
        return slots

    def rows(self, slots: np.ndarray) -> Rows:
        """What is kept of these users."""
        at = torch.from_numpy(slots).to(self.served.device)
        kept = [self.histories[slot] for slot in slots.tolist()]
        return Rows(
            state={key: value[at].cpu() for key, value in self.state.items()},
            hidden=self.hidden[at].cpu(),
            items=np.concatenate([np.array(items, np.uint32) for items in [array("I"), *kept]]),
            offsets=np.array([0, *accumulate(map(len, kept))], np.int64),
        )

    def _grow(self, room: int) -> None:
        before = len(self.histories)
        more = room - before
        if more <= 0:
            return
        with torch.inference_mode():
            for key, first in self._first.items():
                rows = first.expand(more, *first.shape[1:])
                self.state[key] = torch.cat([self.state[key], rows])
            self.hidden = torch.cat([self.hidden, self._nobody.expand(more, -1)])
        self.histories += [array("I") for _ in range(more)]
        self._free += reversed(range(before, room))

    def check(self, slots: np.ndarray, names: Sequence[object]) -> None:
        """LonghaulError where an event each for ``slots`` (repeats are several) is too much.

        names: of the users, an entry an event.
        """
        served = self.served
        if served.rule.past_max_history != "refuse":
            return
        name = served.model.config.name
        if not served.steps:
            raise LonghaulError(
                f"{name} looks both ways here, so that every event encodes the whole window anew: "
                "say so with serving.past_max_history re-encode"
            )
        if served.window is None:
            return
        distinct, at, more = np.unique(slots, return_index=True, return_counts=True)
        for slot, first, count in zip(distinct.tolist(), at.tolist(), more.tolist(), strict=True):
            if len(self.histories[slot]) + count > served.window:
                raise LonghaulError(
                    f"user {names[first]!r} has {len(self.histories[slot])} events, and {count} "
                    f"more exceed model.max_history {served.window} of {name}: set "
                    "serving.past_max_history to re-encode for the newest window at every event"
                )

    def take(self, slots: np.ndarray, items: np.ndarray) -> None:
        """Take events in their order; both i64 ``[n]``. Slots may repeat. See ``check``."""
        if not len(slots):
            return
        for slot, item in zip(slots.tolist(), items.tolist(), strict=True):
            self.histories[slot].append(item)
        with torch.inference_mode():
            past = self._past(slots)
            if past is not None:
                self._encode_anew(np.unique(slots[past]))
                slots, items = slots[~past], items[~past]
            for rows, ids in _rounds(slots, items):
                for first in range(0, len(rows), self._at_once):
                    part = slice(first, first + self._at_once)
                    self._take_one_each(rows[part], ids[part])

    def _past(self, slots: np.ndarray) -> np.ndarray | None:
        """bool ``[n]``: events of users who no longer fit a state; None where all do."""
        if not self.served.steps:
            return np.ones(len(slots), bool)
        window = self.served.window
        if window is None:
            return None
        past = np.array([len(self.histories[slot]) > window for slot in slots.tolist()], bool)
        return past if past.any() else None

    def _take_one_each(self, slots: np.ndarray, items: np.ndarray) -> None:
        assert self._step is not None
        rows = torch.from_numpy(slots).to(self.served.device)
        ids = torch.from_numpy(items).to(self.served.device)
        before = {key: value.index_select(0, rows) for key, value in self.state.items()}
        hidden, after = self._step(ids, before)
        for key, value in after.items():
            self.state[key].index_copy_(0, rows, value)
        self.hidden.index_copy_(0, rows, hidden.float())

    def _encode_anew(self, slots: np.ndarray) -> None:
        window = self.served.window or 0
        batch: list[int] = []
        windows: list[np.ndarray] = []
        tokens = 0
        for at, slot in enumerate(slots.tolist()):
            newest = np.array(self.histories[slot][-window:], np.int64)
            batch.append(slot)
            windows.append(newest)
            tokens += len(newest)
            if tokens >= _ENCODE_TOKENS or at == len(slots) - 1:
                rows = torch.tensor(batch, device=self.served.device)
                self.hidden.index_copy_(0, rows, self._encode(windows))
                batch, windows, tokens = [], [], 0

    def _encode(self, windows: list[np.ndarray]) -> torch.Tensor:
        """The last hidden state of each window, fp32 ``[n, d]``."""
        if self.served.masks:
            windows = [np.append(window, 0) for window in windows]
        items = torch.from_numpy(np.concatenate(windows))
        offsets = torch.tensor([0, *accumulate(map(len, windows))])
        batch = PackedBatch(items, offsets, torch.zeros_like(items)).to(self.served.device)
        return self.served.model.encode(batch)[batch.offsets[1:] - 1].float()


def _rounds(slots: np.ndarray, items: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Events of which no two in a round share a slot; those of a slot keep their order."""
    if len(slots) < 2:
        return [(slots, items)] if len(slots) else []
    order = np.argsort(slots, kind="stable")
    sorted_slots = slots[order]
    first = np.ones(len(slots), bool)
    first[1:] = sorted_slots[1:] != sorted_slots[:-1]
    if first.all():
        return [(slots, items)]
    starts = np.flatnonzero(first)
    turn = np.arange(len(slots)) - np.repeat(starts, np.diff([*starts, len(slots)]))
    order = order[np.argsort(turn, kind="stable")]
    cuts = np.cumsum(np.bincount(turn))[:-1]
    return list(zip(np.split(slots[order], cuts), np.split(items[order], cuts), strict=True))
