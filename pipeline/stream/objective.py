"""What a position is asked: the objectives that models are trained for, on packed batches."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.stream.lane import Fill
from pipeline.stream.order import mix


class Objective(BaseModel):
    """What is predicted from what. Which of them suit a model, its configuration says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["next_item", "cloze", "last_item"] = Field(
        "next_item",
        description="next_item: every position predicts the item after it; last_item: only the "
        "last position of a segment does; cloze: masked items are predicted from both sides",
    )
    mask_probability: float | None = Field(
        None, gt=0, lt=1, description="cloze: the share of items that are masked"
    )
    last_only: float = Field(
        0.0, ge=0, le=1, description="cloze: the share of segments of which just the last is masked"
    )

    @model_validator(mode="after")
    def _fits(self) -> "Objective":
        if (self.mask_probability is not None) != (self.name == "cloze"):
            raise ValueError("mask_probability goes with objective cloze: give both or neither")
        if self.last_only and self.name != "cloze":
            raise ValueError("last_only goes with objective cloze")
        return self

    @property
    def masks(self) -> bool:
        """Whether a prediction is asked for by token 0 in the place of the item."""
        return self.name == "cloze"

    def apply(self, fill: Fill, seed: int) -> Fill:
        """The micro-batch with this objective's inputs and targets.

        Masks follow from ``seed`` and the segment alone: no lane and no world size changes them.
        """
        if self.name == "next_item" or not fill.segments:
            return fill
        lengths = np.diff(fill.offsets)
        asked = np.zeros(len(fill.items), dtype=bool)
        asked[fill.offsets[1:] - 1] = True
        if self.name == "last_item":
            return fill.asking(fill.items, np.where(asked, fill.targets, 0))
        assert self.mask_probability is not None
        segment = np.repeat(np.arange(len(lengths)), lengths)
        within = np.arange(len(segment)) - np.repeat(fill.offsets[:-1], lengths)
        drawn = mix(fill.identity ^ np.uint64(seed))
        chance = _uniform(mix(drawn[segment] + within.astype(np.uint64) + np.uint64(1)))
        masked = chance < self.mask_probability
        # A segment of which nothing would be asked is asked for its last item.
        lonely = np.bincount(segment, weights=masked, minlength=len(lengths)) == 0
        lonely |= _uniform(drawn) < self.last_only
        masked = np.where(lonely[segment], asked, masked)
        # The events are the targets; the inputs are the same events one place earlier.
        return fill.asking(np.where(masked, 0, fill.targets), np.where(masked, fill.targets, 0))


def _uniform(hashes: np.ndarray) -> np.ndarray:
    """u64 to float64 in [0, 1)."""
    drawn: np.ndarray = (hashes >> np.uint64(11)) * 2.0**-53
    return drawn
