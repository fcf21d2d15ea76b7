"""The space a sweep searches: how the values of each key are drawn.

The points are a pure function of space and seed. A value depends on the seed, the number of the
draw and the key alone, so more trials later leave the earlier ones as they were.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.stream.order import seed_of

Point = dict[str, Any]


class Draw(BaseModel):
    """How the values of one key are drawn: exactly one of these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choice: list[Any] | None = Field(None, min_length=1, description="one of these values")
    uniform: tuple[float, float] | None = Field(None, description="a number from a to b")
    log_uniform: tuple[float, float] | None = Field(
        None, description="a number from a to b, its logarithm uniform"
    )
    integer: tuple[int, int] | None = Field(None, description="a whole number from a to b")

    @model_validator(mode="after")
    def _one(self) -> "Draw":
        kinds = list(type(self).model_fields)
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(kinds)} is expected, not {len(given)}")
        bounds = None if given == ["choice"] else getattr(self, given[0])
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]} {list(bounds)} is empty: the least comes first")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform {list(self.log_uniform)} must begin above zero")
        return self

    @property
    def extremes(self) -> list[Any]:
        """Every choice, or both ends: what a recipe must accept for all values to be accepted."""
        bounds = self.uniform or self.log_uniform or self.integer
        return list(bounds) if bounds else list(self.choice or ())

    @property
    def size(self) -> int | None:
        """How many values there are; None where they are not counted."""
        if self.choice is not None:
            return len(self.choice)
        return self.integer[1] - self.integer[0] + 1 if self.integer else None

    def at(self, share: float) -> Any:
        """The value at ``share`` of the way, in [0, 1)."""
        if self.choice is not None:
            return self.choice[int(share * len(self.choice))]
        if self.integer is not None:
            low, high = self.integer
            return low + int(share * (high - low + 1))
        if self.log_uniform is not None:
            least, most = map(math.log, self.log_uniform)
            return _short(math.exp(least + share * (most - least)), self.log_uniform)
        assert self.uniform is not None
        return _short(self.uniform[0] + share * (self.uniform[1] - self.uniform[0]), self.uniform)


def size_of(space: Mapping[str, Draw]) -> int | None:
    """How many points the space has; None where they are not counted."""
    sizes = [draw.size for draw in space.values()]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def points(space: Mapping[str, Draw], seed: int, count: int) -> list[Point]:
    """The first ``count`` points; none comes twice where they can be counted.

    ``count`` is at most ``size_of(space)``.
    """
    found: list[Point] = []
    for number in itertools.count():
        if len(found) == count:
            break
        point = {key: draw.at(_share(seed, number, key)) for key, draw in space.items()}
        if size_of(space) is None or point not in found:
            found.append(point)
    return found


def _share(seed: int, number: int, key: str) -> float:
    """In [0, 1), by 53 bits of a hash."""
    return (seed_of("sweep", seed, number, key) >> 10) / 2**53


def _short(value: float, bounds: tuple[float, float]) -> float:
    """To six digits: people read it, and the last bits of a logarithm differ between machines."""
    return min(max(float(f"{value:.6g}"), bounds[0]), bounds[1])
