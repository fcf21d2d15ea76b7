"""Events with typed columns: what the readers give, and what everything after them takes."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, eq=False)
class Events:
    """``N`` events in the order of files and rows.

    users, items: i64 or large_string ``[N]``. times: i64 ``[N]`` in one unit, or None. actions:
    large_string ``[N]``, or None. ratings: f64 ``[N]``, or None.
    """

    users: pa.Array
    items: pa.Array
    times: np.ndarray | None = None
    actions: pa.Array | None = None
    ratings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def where(self, kept: np.ndarray) -> "Events":
        """Those that ``kept``, bool ``[N]``, marks."""
        mask = pa.array(kept)
        return replace(
            self,
            users=self.users.filter(mask),
            items=self.items.filter(mask),
            times=None if self.times is None else self.times[kept],
            actions=None if self.actions is None else self.actions.filter(mask),
            ratings=None if self.ratings is None else self.ratings[kept],
        )


def joined(parts: list[Events]) -> Events:
    """The events of ``parts``, one after another."""
    first = parts[0]
    if len(parts) == 1:
        return first

    def arrays(name: str) -> pa.Array:
        return pa.concat_arrays([getattr(part, name) for part in parts])

    def numbers(name: str) -> np.ndarray | None:
        if getattr(first, name) is None:
            return None
        return np.concatenate([getattr(part, name) for part in parts])

    return Events(
        users=arrays("users"),
        items=arrays("items"),
        times=numbers("times"),
        actions=None if first.actions is None else arrays("actions"),
        ratings=numbers("ratings"),
    )
