"""What a synthetic log is asked to be: its size and shape, by itself or from a known data set's."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DAY = 86_400  # seconds

# Yandex's Yambda-5B (arXiv 2505.22238): its users, items, events of all five types, days and
# least events of a user. The spread and the longest history fit the published mean of 4,786
# events a user, median of 3,076 listens, 95th percentile of 17,030 (here 2,790 and 16,960 events)
# and the maximum that MLPerf's preparation reports. Topics and popularity are not published.
_YAMBDA: dict[str, Any] = {
    "users": 1_000_000,
    "items": 9_390_623,
    "events": 4_785_859_887,
    "days": 301,
    "shortest": 10,
    "longest": 27_738,
    "spread": 1.1,
    "topics": 1_000,
}
_PRESETS = {"yambda-5b": _YAMBDA}


class SynthOptions(BaseModel):
    """Size and shape of a synthetic log."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["yambda-5b"] | None = Field(
        default=None, description="Size and shape of a known data set; other options override it."
    )
    fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Part of the preset's users, with histories as long; items by its square root.",
    )
    users: int = Field(default=20_000, ge=1, lt=2**31, description="Number of users.")
    items: int = Field(
        default=2_000, ge=2, lt=2**31, description="Number of items, with keys 1 to items."
    )
    events: int = Field(default=1_000_000, ge=1, description="Number of events, exactly.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of everything that is drawn.")
    topics: int = Field(
        default=80, ge=1, le=2**16, description="Number of topics the items belong to."
    )
    successors: int = Field(default=4, ge=1, le=1_000, description="Successors of each item.")
    markov: float = Field(
        default=0.5, ge=0, le=1, description="Share of events that follow the last item."
    )
    topical: float = Field(
        default=0.4, ge=0, le=1, description="Share of events that follow the topics of the past."
    )
    decay: float = Field(
        default=0.9, gt=0, lt=1, description="Weight of a past event against the one after it."
    )
    memory: int = Field(
        default=64, ge=1, le=2**16, description="Past events whose topics still count."
    )
    zipf: float = Field(default=1.0, ge=0, description="Exponent of the popularity of items.")
    shortest: int = Field(default=5, ge=1, description="Events of the shortest history.")
    longest: int | None = Field(
        default=None,
        ge=1,
        description="Events of the longest history, at most (and by default) 8,640 a day.",
    )
    spread: float = Field(
        default=1.0, ge=0, description="Standard deviation of the logarithm of history lengths."
    )
    tail: float | None = Field(
        default=None,
        gt=1,
        description="Exponent of a power law of history lengths, instead of the spread.",
    )
    days: int = Field(default=90, ge=1, le=36_500, description="Time that the log covers.")

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, given: Any) -> Any:
        # A subsample of users keeps their histories, and meets fewer items: the published tenth
        # and hundredth of Yambda hold 0.32 and 0.099 of its items, the square root of the part.
        if not isinstance(given, dict) or given.get("preset") not in _PRESETS:
            return given
        try:
            part = float(given.get("fraction", 1.0))
        except (TypeError, ValueError):
            return given  # the field says so
        if not 0 < part <= 1:
            return given
        preset = dict(_PRESETS[given["preset"]])
        whole = preset["users"]
        preset["users"] = max(1, round(whole * part))
        preset["events"] = round(preset["events"] / whole * preset["users"])
        preset["items"] = max(2 * preset["topics"], round(preset["items"] * math.sqrt(part)))
        return {**preset, **given}

    @model_validator(mode="after")
    def _fit_together(self) -> "SynthOptions":
        if self.fraction != 1 and self.preset is None:
            raise ValueError("fraction is a part of a preset: name one, or say users and events")
        if self.markov + self.topical > 1:
            raise ValueError("markov and topical are shares: together at most 1")
        if self.topics > self.items:
            raise ValueError("topics cannot outnumber items")
        if self.successors >= self.items:
            raise ValueError("successors must be fewer than items")
        if self.longest is not None and self.longest > self.days * DAY // 10:
            raise ValueError(f"longest must be at most 8,640 a day: {self.days * DAY // 10:,}")
        if self.most < self.shortest:
            raise ValueError("longest must be at least shortest")
        if self.events < self.users * self.shortest:
            raise ValueError(
                f"events must be at least users * shortest: {self.users * self.shortest:,}"
            )
        if self.events > self.users * self.most:
            raise ValueError(f"events must be at most users * longest: {self.users * self.most:,}")
        return self

    @property
    def most(self) -> int:
        """Events of the longest history: a user has time for them, and for pauses."""
        return self.longest or self.days * DAY // 10
