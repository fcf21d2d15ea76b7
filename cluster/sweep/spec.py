"""What a sweep is told: a recipe, the keys to search, and how hard. YAML on disk, typed here."""

import posixpath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from cluster.sweep.space import Draw, size_of
from pipeline import storage
from pipeline.config import read_yaml
from pipeline.errors import LonghaulError
from pipeline.mistakes import tell

_PLACES = ("name", "runs", "placement", "reading", "tracking")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AshaPart(_Part):
    """When a trial is ended early: asynchronous successive halving on the training step."""

    grace: PositiveInt | None = Field(
        None, description="no trial ends before this step; null: train.validation.every"
    )
    reduction: float = Field(
        4.0, gt=1, description="of so many trials that come to a rung, about one goes on"
    )


class SweepSpec(_Part):
    """Everything a sweep needs beside the recipe."""

    schema_version: Literal[1] = 1
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="of the sweep; its runs are NAME-001 and on, the W&B group is NAME",
    )
    recipe: str = Field(description="URL of the recipe, or its path seen from this file")
    overrides: list[str] = Field([], description="key=value of every trial, as train takes them")
    space: dict[str, Draw] = Field(min_length=1, description="key of the recipe: how it is drawn")
    metric: str | None = Field(
        None, description="that decides, higher is better; null: train.validation.metric"
    )
    trials: PositiveInt | None = Field(
        None, description="points to train; null: every one, where they can be counted"
    )
    at_once: PositiveInt | None = Field(
        None, description="trials at a time; null: as many as there is room for"
    )
    seed: int = Field(0, ge=0, description="of the points; train.seed is the recipe's own")
    asha: AshaPart | None = Field(AshaPart(), description="null: no trial is ended early")

    @model_validator(mode="after")
    def _space_suits(self) -> "SweepSpec":
        for key in self.space:
            if key.split(".")[0] in _PLACES:
                raise ValueError(f"space.{key} changes nothing of what a run computes")
            if key == "train.validation.metric":
                raise ValueError(f"space.{key}: values of several metrics cannot be compared")
        size = size_of(self.space)
        if size is None and self.trials is None:
            raise ValueError("key 'trials' is missing: the points of this space are not counted")
        if size is not None and (self.trials or 0) > size:
            raise ValueError(f"trials {self.trials} exceeds the {size} points of the space")
        return self

    @property
    def count(self) -> int:
        """How many points are trained."""
        return self.trials or size_of(self.space) or 0


def load_sweep_spec(url: str) -> SweepSpec:
    """Read a specification. Raises LonghaulError naming the key and the nearest valid name.

    The recipe's place is then seen from here, no more from the file.
    """
    document = read_yaml(url)
    if not isinstance(document, dict):
        raise LonghaulError(f"{url} is no sweep: a mapping of keys to values is expected")
    try:
        spec = SweepSpec.model_validate(document)
    except ValidationError as error:
        raise LonghaulError(f"{url}: {tell(error, SweepSpec, document)}") from error
    return spec.model_copy(update={"recipe": _beside(url, spec.recipe)})


def _beside(url: str, path: str) -> str:
    """``path`` seen from the folder of ``url``; as it is where it names its whole place."""
    if "://" in path or posixpath.isabs(path):
        return path
    scheme, separator, place = storage.absolute(url).rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(posixpath.dirname(place), path))
