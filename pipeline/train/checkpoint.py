"""Checkpoints: one format for every engine, ZeRO stage, precision and world size.

    RUN/checkpoints/step-00001000-attempt-1/
      0-of-2.000.safetensors ...    what each rank held: pieces of flattened tensors
      checkpoint.json               written last: what makes the checkpoint exist

A tensor is ``weight/NAME``, ``exp_avg/NAME`` or ``exp_avg_sq/NAME``, fp32; weights are the masters,
of which a bf16 copy is the rounding and is not kept. A sharded table's rows may have no moments, or
an ``updates/NAME`` of their own. A rank writes the pieces it holds, and reads
those it needs, whatever wrote them. Nothing is used whose hash differs from ``checkpoint.json``.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save as encode_tensors

from pipeline import storage
from pipeline.errors import DamagedError, LonghaulError, first_mistake
from pipeline.member import sha256
from pipeline.train.engine import Piece
from pipeline.transient import read_again
from pipeline.world import World

COMMIT = "checkpoint.json"
SCHEMA_VERSION = 2
CHUNK_BYTES = 8 << 20  # what is hashed, and read, at once
_READERS = 8
_READ_ELEMENTS = 2 * _READERS * CHUNK_BYTES // 4  # at once: the bytes lie beside what they become

T = TypeVar("T")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataState(_Part):
    """Where the data stands: the epoch, and (group, segment) of every lane."""

    fingerprint: str
    epoch: int
    positions: dict[int, tuple[int, int]]


class Best(_Part):
    """The best validation so far."""

    step: int
    value: float


class Origin(_Part):
    """The weights that a run began with. sha256: of the files of the checkpoint or bundle.

    Items that kept their rows, that were new, and that the data set no longer has.
    """

    url: str
    step: int
    sha256: str
    items_kept: int
    items_new: int
    items_gone: int


class TrainState(_Part):
    """All that a run needs beside its tensors to go on as if nothing had happened."""

    step: int
    data: DataState
    targets_seen: int = 0
    tokens_seen: int = 0
    best: Best | None = None
    validations_without_best: int = 0
    validation: dict[str, float] | None = None  # at this very step
    skipped: list[int] = []  # steps passed over: read, not trained
    begun_with: Origin | None = None  # None where it began with weights of its own

    @property
    def updates(self) -> int:
        """Optimizer updates behind the state."""
        return self.step - sum(step < self.step for step in self.skipped)


class PieceOnDisk(_Part):
    """Elements ``begin`` up to ``end`` of a flattened tensor, and the byte they begin at."""

    tensor: str
    begin: int
    end: int
    at: int


class TensorFile(_Part):
    """A safetensors file of a checkpoint; sha256 of each ``CHUNK_BYTES`` of it."""

    path: str
    bytes: int
    sha256: list[str]
    pieces: list[PieceOnDisk]


class Commit(_Part):
    """What is in ``checkpoint.json``.

    shapes: of the parameters by name, and by ``KIND/NAME`` where one kind has another shape.
    items: sha256 of ``RUN/items.parquet``; older runs have none.
    """

    schema_version: int = SCHEMA_VERSION
    state: TrainState
    files: list[TensorFile]
    shapes: dict[str, list[int]]
    recipe: dict[str, Any]
    recipe_hash: str
    catalogue_size: int
    items: str | None = None
    world_size: int
    attempt: int
    versions: dict[str, str]

    @property
    def sha256(self) -> str:
        """Of what is in the files: the checkpoint's identity."""
        return sha256("".join(chunk for file in self.files for chunk in file.sha256).encode())


@dataclass(frozen=True, order=True)
class Place:
    """A checkpoint's folder by its name. A later attempt at a step counts as newer."""

    step: int
    attempt: int

    @property
    def name(self) -> str:
        """Names sort as steps do."""
        return f"step-{self.step:08d}-attempt-{self.attempt}"

    @staticmethod
    def parse(name: str) -> "Place":
        """The place whose folder is called ``name``."""
        _, step, _, attempt = name.split("-")
        return Place(int(step), int(attempt))

    def url(self, run_url: str) -> str:
        """The folder in a run."""
        return storage.join(run_url, "checkpoints", self.name)


def places_in(run_url: str) -> list[Place]:
    """The committed checkpoints of a run, oldest first."""
    base = storage.join(run_url, "checkpoints")
    names = (path.split("/") for path in storage.files_below(base))
    return sorted(Place.parse(name[0]) for name in names if name[1:] == [COMMIT])


def write_pieces(url: str, name: str, pieces: Iterable[tuple[Piece, torch.Tensor]]) -> TensorFile:
    """Write one file of pieces, fp32 on the CPU; what to commit of it."""
    tensors = {f"{piece.tensor}[{piece.begin}:{piece.end}]": (piece, t) for piece, t in pieces}
    content = encode_tensors({key: tensor for key, (_, tensor) in tensors.items()})
    (header_bytes,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + header_bytes])
    storage.write_bytes(storage.join(url, name), content)
    return TensorFile(
        path=name,
        bytes=len(content),
        sha256=[
            sha256(content[at : at + CHUNK_BYTES]) for at in range(0, len(content), CHUNK_BYTES)
        ],
        pieces=[
            PieceOnDisk(
                tensor=piece.tensor,
                begin=piece.begin,
                end=piece.end,
                at=8 + header_bytes + header[key]["data_offsets"][0],
            )
            for key, (piece, _) in tensors.items()
        ],
    )


class Checkpoint:
    """A committed checkpoint, read piece by piece; every byte is checked before it is used."""

    def __init__(self, run_url: str, place: Place) -> None:
        """Raises LonghaulError where the commit is missing, damaged or of another schema."""
        self.url = place.url(run_url)
        self.place = place
        self.commit = _read_commit(storage.join(self.url, COMMIT))
        self.state = self.commit.state
        self._chunk: dict[tuple[int, int], bytes] = {}

    @cached_property
    def _where(self) -> dict[str, list[tuple[PieceOnDisk, int]]]:
        """The pieces of each tensor in their order, with the number of their file."""
        found: dict[str, list[tuple[PieceOnDisk, int]]] = {}
        for number, file in enumerate(self.commit.files):
            for piece in file.pieces:
                found.setdefault(piece.tensor, []).append((piece, number))
        for pieces in found.values():
            pieces.sort(key=lambda entry: entry[0].begin)
        return found

    def read(self, tensor: str, begin: int = 0, end: int | None = None) -> torch.Tensor:
        """Elements ``begin`` up to ``end`` of a flattened tensor, fp32, on the CPU.

        Raises LonghaulError naming the file where bytes are missing or differ.
        """
        size = math.prod(self._shape(tensor))
        stop = size if end is None else end
        found = torch.empty(stop - begin, dtype=torch.float32)
        covered = begin
        for piece, number in self._where.get(tensor, []):
            low, high = max(covered, piece.begin), min(stop, piece.end)
            if low >= high:
                continue
            if low > covered:
                break
            for first in range(low, high, _READ_ELEMENTS):
                last = min(first + _READ_ELEMENTS, high)
                at = piece.at + 4 * (first - piece.begin)
                content = self._bytes(number, at, at + 4 * (last - first))
                found[first - begin : last - begin] = torch.frombuffer(content, dtype=torch.float32)
            covered = high
        if covered < stop:
            raise DamagedError(f"{self.url} lacks elements {covered} up to {stop} of {tensor}")
        return found

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor in its shape."""
        return self.read(name).view(self._shape(name))

    def _shape(self, tensor: str) -> list[int]:
        shapes = self.commit.shapes
        return shapes[tensor] if tensor in shapes else shapes[tensor.split("/", 1)[1]]

    def weights(self) -> dict[str, torch.Tensor]:
        """The fp32 weights by parameter name."""
        names = (name for name in self.commit.shapes if "/" not in name)
        return {name: self.tensor(f"weight/{name}") for name in names}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything."""
        return {name: self.tensor(name) for name in sorted(self._where)}

    def _bytes(self, number: int, start: int, stop: int) -> bytearray:
        """Bytes of a file, by the checked chunks that hold them; several are read at once."""
        chunks = range(start // CHUNK_BYTES, -(-stop // CHUNK_BYTES))
        missing = [chunk for chunk in chunks if (number, chunk) not in self._chunk]
        if len(missing) > 1:
            with ThreadPoolExecutor(_READERS) as readers:
                read = list(readers.map(lambda chunk: self._read_chunk(number, chunk), missing))
        else:
            read = [self._read_chunk(number, chunk) for chunk in missing]
        have = self._chunk | {
            (number, c): content for c, content in zip(missing, read, strict=True)
        }
        content = bytearray()
        for chunk in chunks:
            first = chunk * CHUNK_BYTES
            content += memoryview(have[number, chunk])[max(0, start - first) : stop - first]
        # Small tensors lie side by side: the last chunk is likely to hold the next one too.
        self._chunk = {(number, chunks[-1]): have[number, chunks[-1]]} if chunks else {}
        return content

    def _read_chunk(self, number: int, chunk: int) -> bytes:
        file = self.commit.files[number]
        start = chunk * CHUNK_BYTES
        stop = min(start + CHUNK_BYTES, file.bytes)
        url = storage.join(self.url, file.path)

        def read() -> bytes:
            content = storage.read_bytes(url, start, stop)
            if len(content) != stop - start or sha256(content) != file.sha256[chunk]:
                raise DamagedError(
                    f"{url} is damaged: its bytes {start} to {stop} do not have the hash in "
                    f"{COMMIT}"
                )
            return content

        return read_again(read)


def _read_commit(url: str) -> Commit:
    document = storage.read_json(url)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise LonghaulError(
            f"{url} has schema_version {version}, this longhaul reads {SCHEMA_VERSION}"
        )
    try:
        return Commit.model_validate(document)
    except ValidationError as error:
        raise LonghaulError(f"{url}: {first_mistake(error)}") from error


def newest(
    run_url: str, use: Callable[[Checkpoint], T], warn: Callable[[str], None], world: World
) -> tuple[Checkpoint, T] | None:
    """The newest checkpoint that ``use``, on every rank, could read what it needs from.

    Beside it what ``use`` gave; None where the run has no checkpoint. warn: told on rank 0 of each
    newer one that is passed over. Raises LonghaulError where there are some and none can be read.
    """
    places = world.on_rank_zero(lambda: places_in(run_url))
    problem = None
    for place in reversed(places):
        used: tuple[Checkpoint, T] | None = None
        problem = None
        try:
            found = Checkpoint(run_url, place)
            used = found, use(found)
        except LonghaulError as error:
            problem = str(error)
        problem = next(filter(None, world.gather(problem)), None)
        if problem is None:
            return used
        if world.rank == 0:
            warn(f"checkpoint of step {place.step} is passed over: {problem}")
    if problem is not None:
        raise LonghaulError(
            f"none of the {len(places)} checkpoints in {run_url} can be read; the last problem: "
            f"{problem}"
        )
    return None


def best_place(run_url: str, newest_one: Checkpoint) -> Place:
    """Where the best validation was, as the newest checkpoint tells it; else the newest itself."""
    best = newest_one.state.best
    if best is None:
        return newest_one.place
    kept = [place for place in places_in(run_url) if place.step == best.step]
    if not kept:
        raise LonghaulError(f"the best checkpoint of {run_url}, of step {best.step}, is not there")
    return kept[-1]


def retain(run_url: str, last: Place, keep: int, best_step: int | None) -> None:
    """Remove all checkpoints but the newest ``keep`` up to ``last`` and the best.

    What never was committed goes too, and what lies behind ``last``: the run was begun again before
    it, since it could not be read.
    """
    places = [place for place in places_in(run_url) if place <= last]
    base = storage.join(run_url, "checkpoints")
    kept = set(places[-keep:]) | set([p for p in places if p.step == best_step][-1:])
    for name in storage.folders_in(base):
        if Place.parse(name) not in kept:
            # The commit first: half a checkpoint must not pass for a whole one.
            storage.remove(storage.join(base, name, COMMIT))
            storage.remove(storage.join(base, name))
