"""Users' states in files.

    STATES/
      part-00000.safetensors ...   users by ranges of their hash, a bounded number of bytes each
      states.json                  model, parts, sizes and hashes; written last

A part is read, stepped and written again on its own, so all users need never be in memory at once.
The hash is the data set's (``prepare.keys``); in a part, users are sorted by (hash, key).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load as decode_tensors
from safetensors.torch import save as encode_tensors

from pipeline import storage
from pipeline.checked import FileEntry, read_checked, write_file
from pipeline.errors import LonghaulError, first_mistake
from pipeline.prepare.keys import hash_keys
from pipeline.prepare.layout import shard_of
from pipeline.serve.keys import Key, as_array, as_list, from_tensors, to_tensors
from pipeline.serve.model import ServedModel
from pipeline.serve.slots import Rows, Slots

STATES = "states.json"
SCHEMA_VERSION = 1
PART_BYTES = 64 << 20

UserType = Literal["int64", "string"]


class PartEntry(FileEntry):
    """A part's file; how many users are in it, with how many events."""

    users: int
    events: int


class StatesManifest(BaseModel):
    """What is in ``states.json``. bytes_per_user: without the history, 4 bytes an event."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    model: str
    model_hash: str
    user_type: UserType
    users: int
    events: int
    bytes_per_user: int
    parts: list[PartEntry]


@dataclass(frozen=True)
class States:
    """Opened states."""

    url: str
    manifest: StatesManifest

    @property
    def parts(self) -> list[PartEntry]:
        """In the order of the hash."""
        return self.manifest.parts

    def content(self, entry: PartEntry) -> bytes:
        """A part's bytes. DamagedError naming it where they are not those that were written."""
        return read_checked(self.url, entry, STATES)


@dataclass(frozen=True, eq=False)
class Part:
    """Keys of users, see ``serve.keys``, and what is kept of them."""

    users: np.ndarray
    rows: Rows

    def user_keys(self) -> list[Key]:
        """For users of the program."""
        return as_list(self.users)


def open_states(url: str, served: ServedModel) -> States:
    """Open the states at ``url``.

    Raises LonghaulError where there are none, or another model than ``served`` made them.
    """
    url = storage.absolute(url)
    where = storage.join(url, STATES)
    if not storage.exists(where):
        raise LonghaulError(
            f"no states at {url}: {STATES} is missing (`longhaul recommend RUN --save-state` "
            "writes them; an interrupted one leaves none)"
        )
    try:
        manifest = StatesManifest.model_validate(storage.read_json(where))
    except ValidationError as error:
        raise LonghaulError(f"{where}: {first_mistake(error)}") from error
    if manifest.model_hash != served.hash:
        raise LonghaulError(
            f"the states in {url} were made by another model ({manifest.model} "
            f"{manifest.model_hash[:12]}, not {served.model.config.name} {served.hash[:12]}): "
            "start from the histories again"
        )
    return States(url, manifest)


def read_part(states: States, entry: PartEntry) -> Part:
    """A part of the states, checked."""
    tensors = decode_tensors(states.content(entry))
    state = {
        key.removeprefix("state/"): tensor
        for key, tensor in tensors.items()
        if key.startswith("state/")
    }
    users = {
        key.removeprefix("user/"): tensor
        for key, tensor in tensors.items()
        if key.startswith("user/")
    }
    items = tensors["items"].numpy().view(np.uint32)
    rows = Rows(state, tensors["hidden"], items, tensors["offsets"].numpy())
    return Part(from_tensors(users), rows)


class StatesWriter:
    """Writes parts in the order of the hash."""

    def __init__(self, url: str, served: ServedModel, user_type: UserType) -> None:
        self._url, self._served, self._user_type = url, served, user_type
        self._parts: list[PartEntry] = []

    def _next(self) -> str:
        return f"part-{len(self._parts):05d}.safetensors"

    def write(self, part: Part) -> None:
        """The next part; its users are sorted by (hash, key)."""
        rows = part.rows
        tensors = {
            "hidden": rows.hidden,
            "items": torch.from_numpy(rows.items.view(np.int32)),
            "offsets": torch.from_numpy(rows.offsets),
            **{f"state/{key}": value.contiguous() for key, value in rows.state.items()},
            **{f"user/{key}": value for key, value in to_tensors(part.users).items()},
        }
        entry = write_file(self._url, self._next(), encode_tensors(tensors))
        counts = {"users": len(rows), "events": len(rows.items)}
        self._parts.append(PartEntry(**entry.model_dump(), **counts))

    def copy(self, states: States, entry: PartEntry) -> None:
        """The next part is that of other states, whose users had no events."""
        name = self._next()
        storage.write_bytes(storage.join(self._url, name), states.content(entry))
        self._parts.append(entry.model_copy(update={"path": name}))

    def commit(self) -> StatesManifest:
        """Write the manifest, which makes the states exist."""
        manifest = StatesManifest(
            model=self._served.model.config.name,
            model_hash=self._served.hash,
            user_type=self._user_type,
            users=sum(part.users for part in self._parts),
            events=sum(part.events for part in self._parts),
            bytes_per_user=self._served.bytes_per_user(),
            parts=self._parts,
        )
        storage.write_json(storage.join(self._url, STATES), manifest.model_dump())
        return manifest


@contextmanager
def writing_states(url: str, served: ServedModel, user_type: UserType) -> Iterator[StatesWriter]:
    """A writer of states into a new folder, of which nothing is left where the block raises."""
    url = storage.absolute(url)
    if storage.files_below(url):
        raise LonghaulError(f"the folder for states {url} is not empty: choose another")
    try:
        yield StatesWriter(url, served, user_type)
    except BaseException:
        storage.remove(url)
        raise


def part_count(users: int, events: int, bytes_per_user: int) -> int:
    """How many parts so many users are cut into."""
    return max(1, -(-(users * bytes_per_user + 4 * events) // PART_BYTES))


def hashes_of(users: np.ndarray) -> np.ndarray:
    """The hash of every key, u64 ``[n]``, as of the data set's users."""
    if users.dtype.kind == "S":
        return hash_keys(pa.array(users.tolist(), pa.large_binary()).cast(pa.large_string()))
    return hash_keys(pa.array(users))


def homes_of(users: np.ndarray, parts: int) -> np.ndarray:
    """The part of every user, i64 ``[n]``."""
    return shard_of(hashes_of(users), parts)


def in_order(users: np.ndarray) -> np.ndarray:
    """The permutation that sorts users by (hash, key)."""
    order: np.ndarray = np.lexsort((users, hashes_of(users)))
    return order


def save_slots(url: str, slots: Slots, slot_of: dict[Key, int]) -> None:
    """Write all users of ``slots``."""
    served = slots.served
    strings = any(isinstance(user, str) for user in slot_of)
    users = as_array(list(slot_of), strings, "user")
    of_users = np.array(list(slot_of.values()), np.int64)
    order = in_order(users)
    users, of_users = users[order], of_users[order]
    events = sum(len(slots.histories[slot]) for slot in of_users.tolist())
    parts = part_count(len(users), events, served.bytes_per_user())
    bounds = np.searchsorted(homes_of(users, parts), np.arange(parts + 1))
    with writing_states(url, served, "string" if strings else "int64") as writer:
        for begin, end in pairwise(bounds.tolist()):
            writer.write(Part(users[begin:end], slots.rows(of_users[begin:end])))
        writer.commit()
