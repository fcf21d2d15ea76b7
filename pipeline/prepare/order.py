"""The order that everything relies on: users by (hash, key), events by time, ties as they came."""

import numpy as np
import pyarrow as pa

from pipeline.prepare.keys import hash_keys

_DIGIT = 2**16


def coded(keys: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Different keys in sorted order, and of each row the code (position) of its key, u32 ``[N]``.

    Integers sort by value, strings by bytes.
    """
    if keys.type == pa.int64() and len(keys):
        values = keys.to_numpy()
        least, most = int(values.min()), int(values.max())
        if most - least < max(4 * len(values), 2**20):
            return _coded_by_table(values, least, most)
    encoded = keys.dictionary_encode()
    by_key = pa.compute.array_sort_indices(encoded.dictionary)
    return encoded.dictionary.take(by_key), _rank(by_key.to_numpy())[encoded.indices.to_numpy()]


def _coded_by_table(values: np.ndarray, least: int, most: int) -> tuple[pa.Array, np.ndarray]:
    """As ``coded`` where keys lie close together: a table of all of them is the fastest."""
    places = values - least
    present = np.zeros(most - least + 1, bool)
    present[places] = True
    used = np.flatnonzero(present)
    rank = np.empty(len(present), np.uint32)
    rank[used] = np.arange(len(used), dtype=np.uint32)
    return pa.array(used + least), rank[places]


def coded_by_hash(keys: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """As ``coded``, with the keys by (hash, key): the order of users in shards."""
    keys, codes = coded(keys)
    # Keys are sorted, so a stable sort by hash leaves equal hashes in the order of keys.
    by_hash = np.argsort(hash_keys(keys), kind="stable")
    return keys.take(pa.array(by_hash)), _rank(by_hash)[codes]


def _rank(order: np.ndarray) -> np.ndarray:
    rank = np.empty(len(order), np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    return rank


def stable_order(codes: np.ndarray, count: int) -> np.ndarray:
    """Rows in the order of ``codes``, u32 ``[N]`` below ``count``; ties as they are.

    By digits of 16 bits, which numpy sorts stably in linear time.
    """
    rows: np.ndarray = np.argsort(codes.astype(np.uint16), kind="stable")
    if count > _DIGIT:
        high = (codes >> np.uint32(16)).astype(np.uint16)
        rows = rows[np.argsort(high[rows], kind="stable")]
    return rows


def by_user_and_time(users: np.ndarray, count: int, times: np.ndarray | None) -> np.ndarray:
    """Rows by user, code u32 ``[N]`` below ``count``, and time, i64 ``[N]``; ties as they are."""
    if times is None or bool((times[1:] >= times[:-1]).all()):
        return stable_order(users, count)
    by_time: np.ndarray = np.argsort(times, kind="stable")
    rows: np.ndarray = by_time[stable_order(users[by_time], count)]
    return rows
