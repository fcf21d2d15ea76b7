"""What is asked of an evaluation, and what it answers: both are part of every result file."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

RESULT_SCHEMA: Literal[2] = 2
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
    candidates: Literal["all"] | int = Field(
        "all",
        description="all: the whole catalogue is ranked; a number: only so many items drawn for "
        "each user, uniformly from those that are candidates, beside his targets. Such a result "
        "compares with others of its kind alone, and takes as long as a full ranking",
    )
    candidates_seed: int = Field(0, ge=0, description="another seed, other candidates drawn")
    lists: bool = Field(
        False,
        description="also coverage, popularity and novelty of the lists; about doubles the ranking",
    )

    @field_validator("candidates", mode="before")
    @classmethod
    def _candidates(cls, given: object) -> object:
        if given != "all" and (type(given) is not int or given < 1):
            raise ValueError(f"all or a number of items from 1 on, not {given!r}")
        return given

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, given: Any) -> Any:
        # The recipes of runs trained before keep it.
        if isinstance(given, dict) and "coverage" in given:
            given = dict(given)
            given.setdefault("lists", given.pop("coverage"))
        return given

    @model_validator(mode="after")
    def _whole_lists(self) -> "Protocol":
        if self.lists and self.candidates != "all":
            raise ValueError("lists of sampled candidates say nothing: lists needs candidates all")
        return self

    @property
    def ranking(self) -> str:
        """What targets are ranked among, in words."""
        if self.candidates == "all":
            return "full ranking"
        return f"ranked among {self.candidates:,} sampled items (seed {self.candidates_seed})"

    @field_validator("ks")
    @classmethod
    def _lengths(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if min(ks) < 1 or len(set(ks)) != len(ks):
            raise ValueError(f"list lengths must be different and at least 1, not {list(ks)}")
        return tuple(sorted(ks))


class Group(_Part):
    """Means over a part of the users, or of the targets.

    users: None where targets are grouped; each then counts by itself, with its place in the list.
    metrics, half_widths: as in ``Result``.
    """

    users: int | None
    targets: int
    metrics: dict[str, float]
    half_widths: dict[str, float]


class Result(_Part):
    """Means over the users scored, and everything one has to know to compare them.

    ranking: ``Protocol.ranking``, for who reads the file. metrics: ``hr@k``, ``recall@k``,
    ``ndcg@k``, ``mrr@k``, ``mrr``, ``mean_rank`` with ties against the target; with ``lists`` also
    ``popularity@k`` and ``novelty@k`` (``catalogue.list_metrics``) and ``coverage@k``.
    half_widths: half of the 95 % interval of each mean (``intervals.Sums``); coverage, which is no
    mean, has none, nor has anything of a single user. expected: ``hr@k`` to ``mrr@k`` and
    ``mean_rank`` in expectation over random orders of equal scores; a wide gap between the two says
    that the scorer does not tell items apart. skipped: users that were not scored, by reason.
    without_history: users among the scored of whom nothing was known. groups: by what they are
    grouped (``groups``) and by name; those with nobody in are left out. data: the fingerprint.
    """

    schema_version: Literal[2] = RESULT_SCHEMA
    ranking: str
    metrics: dict[str, float]
    half_widths: dict[str, float]
    expected: dict[str, float]
    users: int
    targets: int
    skipped: dict[str, int]
    without_history: int
    groups: dict[str, dict[str, Group]]
    protocol: Protocol
    data: str
    catalogue_size: int
    tie_rule: str = TIE_RULE
    seconds: float
