"""A trained model as a server holds it: users' events in, their best items out, keys not ids."""

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, overload

import numpy as np
import torch

from pipeline.errors import LonghaulError
from pipeline.serve.best import best_items
from pipeline.serve.keys import Key
from pipeline.serve.model import ServedModel
from pipeline.serve.slots import Slots

Best = list[tuple[Key, float]]
"""Items and their scores, best first."""


class Recommender:
    """Users' states and the model that steps them. Safe for threads: each call is one event.

    Users are integers or strings; a call takes one user or a sequence of them. Every call checks
    all it is given before it changes anything. Raises LonghaulError for a user or an item that is
    unknown, and past ``max_history`` where the recipe says so (``serving.past_max_history``).
    """

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self._slots = Slots(served)
        self._slot_of: dict[Key, int] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        url: str,
        device: torch.device | str = "cpu",
        warn: Callable[[str], None] = warnings.warn,
    ) -> "Recommender":
        """The model of a bundle, or of a run's best checkpoint. warn: as in ``load_trained``."""
        from pipeline.serve.load import load_served

        return cls(load_served(url, device, warn))

    def __len__(self) -> int:
        """How many users have a state."""
        return len(self._slot_of)

    def __contains__(self, user: Key) -> bool:
        """Whether the user has a state."""
        return user in self._slot_of

    @property
    def bytes_per_user(self) -> int:
        """Of a state; the items of the history take 4 bytes each besides."""
        return self.served.bytes_per_user()

    def start(self, histories: Mapping[Key, Sequence[Key]]) -> None:
        """Give users a state from their histories, oldest item first; a history may be empty.

        LonghaulError for a user who has one: ``forget`` him first.
        """
        users = list(histories)
        lengths = [len(items) for items in histories.values()]
        ids = self.served.keys.ids([item for items in histories.values() for item in items])
        with self._lock:
            for user in users:
                _check_user(user)
                if user in self._slot_of:
                    raise LonghaulError(f"user {user!r} has a state already: forget him first")
            slots = self._slots.add(len(users))
            of_events = np.repeat(slots, lengths)
            try:
                self._slots.check(
                    of_events,
                    [user for user, n in zip(users, lengths, strict=True) for _ in range(n)],
                )
            except LonghaulError:
                self._slots.remove(slots)
                raise
            self._slots.take(of_events, ids)
            self._slot_of.update(zip(users, slots.tolist(), strict=True))

    def update(self, users: Key | Sequence[Key], items: Key | Sequence[Key]) -> None:
        """Take one event of one user, or many in their order; a user may occur several times."""
        if isinstance(users, Key):
            users, items = [users], [items]  # type: ignore[list-item]
        if isinstance(items, Key) or len(items) != len(users):
            raise LonghaulError(f"{len(users)} users need as many items, one each")
        ids = self.served.keys.ids(items)
        with self._lock:
            slots = self._slots_of(users)
            self._slots.check(slots, list(users))
            self._slots.take(slots, ids)

    @overload
    def top_k(  # type: ignore[overload-overlap]  # a string is a sequence of strings too
        self, users: Key, k: int = ..., seen: Literal["history", "none"] | Iterable[Key] = ...
    ) -> Best: ...

    @overload
    def top_k(
        self,
        users: Sequence[Key],
        k: int = ...,
        seen: Literal["history", "none"] | Iterable[Key] = ...,
    ) -> list[Best]: ...

    def top_k(
        self,
        users: Key | Sequence[Key],
        k: int = 10,
        seen: Literal["history", "none"] | Iterable[Key] = "history",
    ) -> Best | list[Best]:
        """The best items of one user, or a list for each of many.

        seen: what is no candidate: items of the user's own history, none, or these items.
        Fewer than ``k`` come back where fewer are left; equal scores are in the order of item ids.
        """
        if k < 1:
            raise LonghaulError(f"k must be at least 1, not {k}")
        asked: Sequence[Key] = [users] if isinstance(users, Key) else users
        apart: np.ndarray | None = None
        if seen == "none":
            apart = np.empty(0, np.int64)
        elif seen != "history":
            if isinstance(seen, str):
                raise LonghaulError(f"seen is 'history', 'none' or a list of items, not {seen!r}")
            apart = self.served.keys.ids(list(seen))
        with self._lock:
            slots = self._slots_of(asked)
            hidden = self._slots.hidden[torch.from_numpy(slots).to(self.served.device)]
            no_candidates = [
                np.array(self._slots.histories[slot], np.int64) if apart is None else apart
                for slot in slots.tolist()
            ]
        table, bias = self.served.model.item_scores()
        ids, scores = best_items(hidden, table, bias, k, no_candidates)
        lists = []
        for row, values in zip(ids, scores.tolist(), strict=True):
            names = self.served.keys.keys(row[row > 0])
            lists.append(list(zip(names, values, strict=False)))
        return lists[0] if isinstance(users, Key) else lists

    def history(self, user: Key) -> list[Key]:
        """All items of a user, oldest first."""
        with self._lock:
            (slot,) = self._slots_of([user]).tolist()
            ids = np.array(self._slots.histories[slot], np.int64)
        return self.served.keys.keys(ids)

    def forget(self, users: Key | Sequence[Key]) -> None:
        """Drop the states of users; their room is used again."""
        users = [users] if isinstance(users, Key) else list(dict.fromkeys(users))
        with self._lock:
            self._slots.remove(self._slots_of(users))
            for user in users:
                del self._slot_of[user]

    def save(self, folder: str) -> None:
        """Write all states to a folder; see ``docs/formats.md``. Needs pyarrow."""
        from pipeline.serve.states import save_slots

        with self._lock:
            save_slots(folder, self._slots, self._slot_of)

    def restore(self, folder: str) -> None:
        """Take up states that were saved, beside those that are there.

        LonghaulError where another model made them, or a user has a state already.
        """
        from pipeline.serve.states import open_states, read_part

        states = open_states(folder, self.served)
        for entry in states.parts:
            part = read_part(states, entry)
            users = part.user_keys()
            with self._lock:
                for user in users:
                    if user in self._slot_of:
                        raise LonghaulError(f"user {user!r} has a state already: forget him first")
                slots = self._slots.put(part.rows)
                self._slot_of.update(zip(users, slots.tolist(), strict=True))

    def _slots_of(self, users: Sequence[Key]) -> np.ndarray:
        try:
            return np.array([self._slot_of[user] for user in users], np.int64)
        except KeyError as error:
            raise LonghaulError(
                f"user {error.args[0]!r} has no state: start him with his history first"
            ) from None


def _check_user(user: object) -> None:
    if not isinstance(user, Key) or isinstance(user, bool):
        raise LonghaulError(f"user {user!r} is neither an integer nor a string")
