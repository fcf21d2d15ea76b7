"""What lists are asked for: which users are in which part, and the record that says so.

The record lies in the output folder, its hash in every part. So parts that are there already are
used where the same is asked again, and refused where anything differs that shows in the lists.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from pipeline import storage
from pipeline.manifest import Dataset
from pipeline.recommend.candidates import Candidates, Chosen

_ROUND_USERS, _MOST_ROUNDS = 1024, 96


class Origin(BaseModel):
    """Whose lists they are. model: hash of the checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    step: int
    model: str


class Record(BaseModel):
    """A request as it is kept; see ``docs/formats.md``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    origin: Origin | None
    data: str
    k: int
    max_history: int
    seen: bool
    candidates: Chosen | None
    users: int
    part_users: int

    def identity(self) -> dict[str, object]:
        """What shows in the lists and in how they are cut; not where files lay."""
        return {
            "model": self.origin and self.origin.model,
            "data": self.data,
            "k": self.k,
            "max_history": self.max_history,
            "seen": self.seen,
            "candidates": self.candidates and self.candidates.sha256,
            "users": self.users,
            "part_users": self.part_users,
        }

    @property
    def sha256(self) -> str:
        """Hash of the identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: "Record") -> list[str]:
        """In words, what ``other`` asks for otherwise."""
        mine, theirs = self.identity(), other.identity()
        return [
            f"{name} {self._said(name)} there, {other._said(name)} asked for"
            for name in mine
            if mine[name] != theirs[name]
        ]

    def _said(self, name: str) -> str:
        if name == "model":
            origin = self.origin
            return f"{origin.run} step {origin.step} ({origin.model[:8]})" if origin else "none"
        if name == "candidates":
            if self.candidates is None:
                return "all"
            given = self.candidates.model_dump(exclude_none=True, exclude={"sha256"})
            return " ".join(f"{key}={value}" for key, value in given.items())
        return str(self.identity()[name])


@dataclass(frozen=True)
class Request:
    """Lists of up to ``k`` items for every user of a data set, in a folder of Parquet files.

    The whole history counts, its newest ``max_history`` events as input; its items are no
    candidates unless ``seen``. Part ``i`` holds users ``i * part_users`` onwards, in the order of
    the data set; by default a part is a 64th of them, at most some 100,000. origin: whose lists
    they are, for a record that tells models apart.
    """

    dataset: Dataset
    output: str
    k: int
    max_history: int
    seen: bool = False
    candidates: Candidates | None = None
    part_users: int | None = None
    origin: Origin | None = None

    @property
    def users(self) -> int:
        """In all parts."""
        return self.dataset.manifest.users

    @property
    def users_of_part(self) -> int:
        """In each but the last."""
        if self.part_users is not None:
            return self.part_users
        # Whole batches; at least so many that a batch is one.
        return _ROUND_USERS * min(_MOST_ROUNDS, -(-self.users // (64 * _ROUND_USERS)))

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-self.users // self.users_of_part)

    def range_of(self, part: int) -> range:
        """The users of a part, counted over the data set."""
        first = part * self.users_of_part
        return range(first, min(first + self.users_of_part, self.users))

    def url_of(self, part: int) -> str:
        """The file of a part."""
        return storage.join(self.output, part_name(part))

    def record(self) -> Record:
        """What is kept of it."""
        return Record(
            origin=self.origin,
            data=self.dataset.fingerprint,
            k=self.k,
            max_history=self.max_history,
            seen=self.seen,
            candidates=self.candidates and self.candidates.chosen,
            users=self.users,
            part_users=self.users_of_part,
        )


def part_name(part: int) -> str:
    """The file of a part in the output folder."""
    return f"part-{part:05d}.parquet"
