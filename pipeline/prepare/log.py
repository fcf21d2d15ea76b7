"""The events in memory, as codes, and the order that everything after it relies on."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.prepare.keys import hash_keys
from pipeline.prepare.options import Unit


@dataclass(frozen=True, eq=False)
class Log:
    """``N`` events, first in the order of files and rows, after ``order`` by user and time.

    users, items: u32 ``[N]``, codes that index ``user_keys`` and ``item_keys``.
    times: i64 ``[N]`` in ``unit``, or None. actions: u32 ``[N]``, codes that index
    ``action_keys``, or None. ratings: f64 ``[N]``, or None.
    """

    users: np.ndarray
    items: np.ndarray
    user_keys: pa.Array
    item_keys: pa.Array
    times: np.ndarray | None = None
    unit: Unit | None = None
    actions: np.ndarray | None = None
    action_keys: pa.Array | None = None
    ratings: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.users)

    def pick(self, rows: np.ndarray) -> "Log":
        """The events at ``rows`` (indices, or a mask), with the same keys."""

        def picked(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[rows]

        return replace(
            self,
            users=self.users[rows],
            items=self.items[rows],
            times=picked(self.times),
            actions=picked(self.actions),
            ratings=picked(self.ratings),
        )


def order(log: Log) -> Log:
    """The events by user and time; ties keep the order of files and rows.

    Users are recoded by (hash, key), which is their order in the shards.
    """
    # Keys are sorted, so a stable sort by hash leaves equal hashes in the order of keys.
    by_hash = np.argsort(hash_keys(log.user_keys), kind="stable")
    code = np.empty(len(by_hash), np.uint32)
    code[by_hash] = np.arange(len(by_hash), dtype=np.uint32)
    users = code[log.users]
    # lexsort is stable. A sort that is not would reorder ties, and with them targets.
    rows = np.lexsort((users,) if log.times is None else (log.times, users))
    recoded = replace(log, users=users, user_keys=log.user_keys.take(pa.array(by_hash)))
    return recoded.pick(rows)
