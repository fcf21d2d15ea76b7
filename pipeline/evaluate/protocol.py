"""What is asked of an evaluation, and what it answers: both are part of every result file."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

TIE_RULE = "other items that score the same count as higher; `expected`: ties in random order"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Protocol(_Part):
    """Which events are predicted from what, and against which items.

    Two results can be compared only where protocol and data are the same.
    """

    split: Literal["validation", "test"] = Field(
        "test",
        description="the part that is predicted; all that lies before it is history, gaps included",
    )
    max_history: int = Field(
        200, ge=1, description="the newest events before the part that the model is given"
    )
    seen: Literal["none", "window", "history"] = Field(
        "history",
        description="items that are no candidates: none, those the model is given, or all before "
        "the part; the targets themselves always are candidates",
    )
    targets: Literal["next", "all_in_window"] = Field(
        "next", description="the first event of the part, or all distinct items in it"
    )
    ks: tuple[int, ...] = Field((5, 10, 20, 50), min_length=1, description="lengths of the lists")
    users: int | None = Field(
        None, ge=1, description="only the first so many users of the data set; null for all"
    )
    candidates: Literal["all"] = Field("all", description="the whole catalogue is ranked")
    coverage: bool = Field(
        False, description="also the share of the catalogue in the lists; about doubles the ranking"
    )

    @field_validator("ks")
    @classmethod
    def _lengths(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if min(ks) < 1 or len(set(ks)) != len(ks):
            raise ValueError(f"list lengths must be different and at least 1, not {list(ks)}")
        return tuple(sorted(ks))


class Result(_Part):
    """Means over the users scored, and everything one has to know to compare them.

    metrics: ``hr@k``, ``recall@k``, ``ndcg@k``, ``mrr@k``, ``mrr``, ``mean_rank`` with ties
    against the target, and ``coverage@k`` where asked for. expected: the same without ``mrr`` and
    coverage, in expectation over random orders of equal scores; a wide gap between the two says
    that the scorer does not tell items apart. skipped: users that were not scored, by reason.
    without_history: users among the scored of whom nothing was known. data: the fingerprint.
    """

    schema_version: Literal[1] = 1
    metrics: dict[str, float]
    expected: dict[str, float]
    users: int
    targets: int
    skipped: dict[str, int]
    without_history: int
    protocol: Protocol
    data: str
    catalogue_size: int
    tie_rule: str = TIE_RULE
    seconds: float
