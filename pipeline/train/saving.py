"""Saving while training goes on: it waits for the copy of the state, not for the upload.

Ranks upload by themselves, in a thread each. Whether all have is asked together with every step's
plan, so that no rank waits for another; then rank 0 writes the commit, in its thread too.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

from pipeline import storage
from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.manifest import Manifest
from pipeline.tensor_files import cut, divide
from pipeline.train import checkpoint
from pipeline.train.checkpoint import Commit, Place, TensorFile, TrainState
from pipeline.train.engine import Engine, Piece
from pipeline.train.run import RunState, versions, write_state
from pipeline.world import World

R = TypeVar("R")


class Saver:
    """The checkpoints of one attempt, one under way at a time. All ranks call alike."""

    def __init__(self, recipe: Recipe, data: Manifest, world: World, attempt: int) -> None:
        self._recipe = recipe
        self._data = data
        self._world = world
        self._attempt = attempt
        self._state: TrainState | None = None  # of the checkpoint under way
        self._shapes: dict[str, list[int]] = {}
        self._upload: _Task[list[TensorFile]] | None = None
        self._commit: _Task[None] | None = None

    def begin(self, state: TrainState, engine: Engine) -> None:
        """Copy the engine's state and write it in the background, after what is under way."""
        self.finish()
        pieces = engine.export()
        self._state = state
        self._shapes = {name: list(shape) for name, shape in engine.shapes().items()}
        url = Place(state.step, self._attempt).url(self._recipe.run_url)
        self._upload = _Task(lambda: self._write(url, pieces))

    def uploaded(self) -> bool:
        """Whether this rank has an upload behind it that is not yet committed."""
        return self._upload is not None and self._upload.ended()

    def problem(self) -> LonghaulError | None:
        """What this rank's work in the background failed with."""
        for task in (self._upload, self._commit):
            if task is not None and task.ended() and task.problem is not None:
                return task.problem
        return None

    def commit(self) -> None:
        """Every rank has uploaded: say so in the commit. Raises on all ranks if any failed."""
        if self._upload is None:
            return
        self._upload.wait()
        self._world.agree(self._upload.problem)
        files = [file for mine in self._world.gather(self._upload.result) for file in mine]
        self._upload = None
        state = self._state
        assert state is not None
        if self._world.rank == 0:
            self._commit = _Task(lambda: self._write_commit(state, files))

    def finish(self) -> None:
        """Wait until what is under way is committed. Raises on all ranks if any failed."""
        self.commit()
        problem = None
        if self._commit is not None:
            self._commit.wait()
            problem, self._commit = self._commit.problem, None
        if self._state is not None:
            self._world.agree(problem)
            self._state = None

    def _write(self, url: str, pieces: list[tuple[Piece, torch.Tensor]]) -> list[TensorFile]:
        rank, of = self._world.rank, self._world.world_size
        parts = [part for piece, tensor in pieces for part in _cut(piece, tensor)]
        return [
            checkpoint.write_pieces(
                url,
                f"{rank}-of-{of}.{number:03d}.safetensors",
                [parts[place] for place in places],
            )
            for number, places in enumerate(divide(tensor.nbytes for _, tensor in parts))
        ]

    def _write_commit(self, state: TrainState, files: list[TensorFile]) -> None:
        # First, since it fails where another attempt has taken over.
        recipe, attempt = self._recipe, self._attempt
        stands = RunState(
            state="running", attempt=attempt, step=state.step, steps=recipe.train.steps
        )
        write_state(recipe.run_url, stands)
        commit = Commit(
            state=state,
            files=files,
            shapes=self._shapes,
            world_size=self._world.world_size,
            attempt=attempt,
            recipe=recipe.model_dump(mode="json"),
            recipe_hash=recipe.hash(),
            catalogue_size=self._data.catalogue_size,
            items=self._data.items.sha256,
            versions=versions(),
        )
        place = Place(state.step, attempt)
        where = storage.join(place.url(recipe.run_url), checkpoint.COMMIT)
        storage.write_json(where, commit.model_dump(mode="json"))
        best = state.best.step if state.best else None
        checkpoint.retain(recipe.run_url, place, recipe.train.keep_checkpoints, best)


def _cut(piece: Piece, tensor: torch.Tensor) -> Iterator[tuple[Piece, torch.Tensor]]:
    """Views of a flattened tensor: a file for a whole table would take as much memory again."""
    for part in cut(tensor.nbytes):
        begin, end = (at // tensor.itemsize for at in (part.start, part.stop))
        yield Piece(piece.tensor, piece.begin + begin, piece.begin + end), tensor[begin:end]


class _Task(Generic[R]):
    """Work in a thread of its own."""

    def __init__(self, work: Callable[[], R]) -> None:
        self.result: R | None = None
        self.problem: LonghaulError | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), name="saver", daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], R]) -> None:
        try:
            self.result = work()
        except LonghaulError as error:
            self.problem = error
        except Exception as error:  # a mistake of ours must not look like a finished upload
            self.problem = LonghaulError(f"saving failed: {type(error).__name__}: {error}")

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()
