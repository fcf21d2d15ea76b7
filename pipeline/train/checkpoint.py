"""Checkpoints: one format for every engine, ZeRO stage, precision and world size.

    RUN/checkpoints/step-00001000/
      attempt-1-0-of-2.safetensors ...   tensors by parameter name, dealt over the ranks
      checkpoint.json                    written last: what makes the checkpoint exist

Weights are the fp32 masters; a bf16 copy is their rounding and is not kept. A checkpoint is read
only after every file has the size and the hash in ``checkpoint.json``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load as decode_tensors
from safetensors.torch import save as encode_tensors

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import File
from pipeline.member import sha256
from pipeline.train.engine import Engine
from pipeline.world import World

COMMIT = "checkpoint.json"


class DataState(BaseModel):
    """Where the data stands: the epoch, and (group, segment) of every lane."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fingerprint: str
    epoch: int
    positions: dict[int, tuple[int, int]]


class Best(BaseModel):
    """The best validation so far."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    value: float


class TrainState(BaseModel):
    """All that a run needs beside its tensors to go on as if nothing had happened."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    data: DataState
    targets_seen: int = 0
    tokens_seen: int = 0
    best: Best | None = None
    validations_without_best: int = 0
    validation: dict[str, float] | None = None  # at this very step


class _Commit(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int
    state: TrainState
    files: list[File]
    recipe: dict[str, Any]
    recipe_hash: str
    catalogue_size: int
    world_size: int
    versions: dict[str, str]


SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Origin:
    """What wrote a checkpoint: it is kept in it, and decides nothing when it is read."""

    recipe: dict[str, Any]
    recipe_hash: str
    catalogue_size: int
    versions: dict[str, str]


def folder(run_url: str, step: int) -> str:
    """The folder of the checkpoint of ``step``; names sort as steps do."""
    return storage.join(run_url, "checkpoints", f"step-{step:08d}")


def steps_in(run_url: str) -> list[int]:
    """Steps that have a committed checkpoint, oldest first."""
    base = storage.join(run_url, "checkpoints")
    names = (path.split("/") for path in storage.files_below(base))
    return sorted(int(name[0].removeprefix("step-")) for name in names if name[1:] == [COMMIT])


def save(
    run_url: str, state: TrainState, engine: Engine, world: World, attempt: int, origin: Origin
) -> None:
    """Write and commit a checkpoint; every rank calls it. Raises on all ranks if any fails."""
    url = folder(run_url, state.step)
    if world.rank == 0:
        # Of an earlier attempt that never committed, or that committed something damaged.
        storage.remove(storage.join(url, COMMIT))
        storage.remove(url)
    world.gather(None)
    owner = _deal(engine.shapes(), world.world_size)
    tensors = engine.export(lambda name: owner[name] == world.rank)
    name = f"attempt-{attempt}-{world.rank}-of-{world.world_size}.safetensors"
    failure: LonghaulError | None = None
    file: File | None = None
    try:
        content = encode_tensors(tensors)
        storage.write_bytes(storage.join(url, name), content)
        file = File(path=name, bytes=len(content), sha256=sha256(content))
    except LonghaulError as error:
        failure = error
    world.agree(failure)
    files = world.gather(file)
    if world.rank == 0:
        commit = _Commit(
            schema_version=SCHEMA_VERSION,
            state=state,
            files=files,
            recipe=origin.recipe,
            recipe_hash=origin.recipe_hash,
            catalogue_size=origin.catalogue_size,
            world_size=world.world_size,
            versions=origin.versions,
        )
        try:
            storage.write_json(storage.join(url, COMMIT), commit.model_dump(mode="json"))
        except LonghaulError as error:
            failure = error
    world.agree(failure)


def _deal(shapes: dict[str, torch.Size], world_size: int) -> dict[str, int]:
    """Which rank writes which parameter: the largest first, to the rank with the least so far."""
    load = [0] * world_size
    owner = {}
    for name in sorted(shapes, key=lambda name: (-shapes[name].numel(), name)):
        rank = load.index(min(load))
        owner[name] = rank
        load[rank] += shapes[name].numel()
    return owner


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose files were there with the right hashes when it was opened."""

    url: str
    state: TrainState
    recipe: dict[str, Any]
    catalogue_size: int
    tensors: dict[str, torch.Tensor]  # KIND/NAME -> fp32, on the CPU

    def weights(self) -> dict[str, torch.Tensor]:
        """The fp32 weights by parameter name."""
        prefix = "weight/"
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


def load(run_url: str, step: int) -> Checkpoint:
    """Read the checkpoint of ``step``.

    Raises LonghaulError naming the file where something is missing, damaged or of another schema.
    """
    url = folder(run_url, step)
    where = storage.join(url, COMMIT)
    document = storage.read_json(where)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise LonghaulError(
            f"{where} has schema_version {version}, this longhaul reads {SCHEMA_VERSION}"
        )
    try:
        commit = _Commit.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise LonghaulError(
            f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from error
    tensors: dict[str, torch.Tensor] = {}
    for file in commit.files:
        content = storage.read_bytes(storage.join(url, file.path))
        if len(content) != file.bytes or sha256(content) != file.sha256:
            raise LonghaulError(
                f"{storage.join(url, file.path)} is damaged: it does not have the size and hash "
                f"in {COMMIT}"
            )
        tensors.update(decode_tensors(content))
    return Checkpoint(url, commit.state, commit.recipe, commit.catalogue_size, tensors)


def load_newest(run_url: str, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that verifies; ``warn`` is told of each newer one that does not.

    None where the run has no checkpoint. Raises LonghaulError where it has some but none verifies.
    """
    steps = steps_in(run_url)
    problem: LonghaulError | None = None
    for step in reversed(steps):
        try:
            return load(run_url, step)
        except LonghaulError as error:
            problem = error
            warn(f"checkpoint of step {step} is passed over: {error}")
    if problem is not None:
        raise LonghaulError(
            f"none of the {len(steps)} checkpoints in {run_url} can be read; the last problem: "
            f"{problem}"
        )
    return None


def load_best(run_url: str, warn: Callable[[str], None]) -> Checkpoint:
    """The checkpoint with the best validation, or the newest where nothing was validated."""
    newest = load_newest(run_url, warn)
    if newest is None:
        raise LonghaulError(f"{run_url} has no checkpoint yet")
    best = newest.state.best
    return newest if best is None or best.step == newest.state.step else load(run_url, best.step)


def retain(run_url: str, keep: int, best_step: int | None) -> None:
    """Remove all checkpoints but the newest ``keep`` and the best, and what never was committed."""
    base = storage.join(run_url, "checkpoints")
    kept = {*steps_in(run_url)[-keep:], best_step}
    for name in storage.folders_in(base):
        if int(name.removeprefix("step-")) not in kept:
            # The commit first: half a checkpoint must not pass for a whole one.
            storage.remove(storage.join(base, name, COMMIT))
            storage.remove(storage.join(base, name))
