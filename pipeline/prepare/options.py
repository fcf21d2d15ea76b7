"""What a user may ask of ``prepare``, and the checks that need no data."""

import importlib.metadata
import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, field_validator, model_validator

from pipeline.duration import parse_duration

Format = Literal["parquet", "csv", "tsv", "jsonl", "text"]
Preset = Literal["movielens", "amazon", "recbole", "yambda"]
Use = Literal["user", "item", "timestamp", "action", "rating"]
Unit = Literal["s", "ms", "us", "ns"]

PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def parse_time(text: str, unit: Unit) -> int:
    """A point in time in ``unit``: an integer is taken as it is, else ISO 8601 (UTC by default).

    Raises ValueError where it is neither, or is no whole number of ``unit``.
    """
    text = text.strip()
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"'{text}' is neither an integer nor an ISO 8601 time") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    scaled = (since // timedelta(microseconds=1)) * PER_SECOND[unit]
    if scaled % 10**6:
        raise ValueError(f"'{text}' is no whole number of {unit}")
    return scaled // 10**6


def parse_window(text: str, unit: Unit) -> tuple[int, int] | None:
    """The half-open window ``START/END`` in ``unit``; None where ``text`` is none."""
    start, slash, end = text.partition("/")
    return (parse_time(start, unit), parse_time(end, unit)) if slash else None


# What may differ from the data set that is extended: where and how to read, and a split's windows.
_OF_AN_EXTENSION = {
    *("inputs", "output", "append", "overwrite", "engine", "memory", "workers", "work"),
    *("source", "format", "delimiter", "bad_rows", "most_bad_rows"),
    *("columns", "user", "item", "timestamp", "action", "rating", "timestamp_unit"),
    *("validation", "test", "gap", "train_end"),
}


class PrepareOptions(BaseModel):
    """Everything that decides what a data set holds, apart from the input itself.

    Filters apply in this order: ``min_rating``, ``keep_actions``, the end of an absolute test
    window, ``repeats``, then ``min_item_events`` and ``min_user_events``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: list[str] = Field(
        min_length=1,
        description="Event logs: files, folders or globs, local or fsspec URLs such as s3://. "
        "Entries are read in the order given, the files of a folder or glob in the order of their "
        "URLs; that order decides between events of a user with equal timestamps.",
    )
    output: str = Field(description="Folder or bucket prefix for the data set.")
    append: str | None = Field(
        default=None,
        description="Data set to extend: its items keep their ids, its filters hold for the new "
        "events, its shards without new events are referenced where they lie. The other options "
        "are taken from it, but for those that say where and how to read.",
    )
    overwrite: bool = Field(
        default=False, description="Replace the data set that the output already holds."
    )

    source: Preset | None = Field(
        default=None,
        description="A public data set, or a tool's files, whose columns are known: movielens "
        "(ratings.dat, ratings.csv, u.data), amazon (reviews and ratings of 2014, 2018 and 2023), "
        "recbole (.inter) or yambda. Every option below still goes first.",
    )
    format: Format | None = Field(
        default=None,
        description="Format of every input file: parquet, csv, tsv, jsonl, or text (columns "
        "separated by blanks, no header line). By default it follows from the suffix, before an "
        "optional .gz or .zst.",
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        description="What separates the columns of CSV (a comma by default) or TSV (a tab; without "
        "quotes, so several characters as :: can be given too).",
    )
    columns: list[str] | None = Field(
        default=None,
        description="Names of all columns of CSV, TSV or text files, in order; such files have no "
        "header line. By default CSV and TSV have one, and text has the columns user and item.",
    )
    user: str | None = Field(
        default=None,
        description="Column of the user id (integer or string); by default user.",
    )
    item: str | None = Field(
        default=None,
        description="Column of the item id (integer or string); by default item.",
    )
    timestamp: str | None = Field(
        default=None,
        description="Column of the time; without one the order of the rows is the order in time.",
    )
    action: str | None = Field(
        default=None, description="Column of the kind of event (click, purchase), kept if given."
    )
    rating: str | None = Field(
        default=None, description="Column of the rating, used by min_rating and not kept."
    )
    timestamp_unit: Unit | None = Field(
        default=None,
        description="Unit of numeric timestamps, and unit in which all timestamps are kept: s, "
        "ms, us or ns. By default s, and for Parquet datetimes the unit of their type.",
    )
    bad_rows: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="What to do with a row that cannot be read (an id that is missing, a time that "
        "is no number, too few columns): refuse the input, or skip the row and tell of it in "
        "bad_rows.json.",
    )
    most_bad_rows: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="The share of the rows up to which bad ones are skipped; past it the input is "
        "refused.",
    )

    min_rating: float | None = Field(
        default=None, description="Drop events with a rating below this."
    )
    keep_actions: list[str] | None = Field(
        default=None, min_length=1, description="Keep only events with one of these actions."
    )
    repeats: Literal["none", "consecutive", "all"] = Field(
        default="none",
        description="Repeated events to drop: none; consecutive (the same item as the user's "
        "directly previous event); all (all but the user's first event with an item).",
    )
    min_item_events: int = Field(
        default=1, ge=1, description="Drop items with fewer events than this."
    )
    min_user_events: int = Field(
        default=1, ge=1, description="Drop users with fewer events than this."
    )
    count_filter: Literal["one_pass", "k_core"] = Field(
        default="one_pass",
        description="How the two minimum counts apply: one_pass (items first, then users on what "
        "is left, once each) or k_core (repeated until both hold).",
    )

    split: Literal["leave_one_out", "time"] = Field(
        default="leave_one_out",
        description="leave_one_out: a user's last event is the test, the one before it the "
        "validation, users with fewer than 3 events are trained on only. time: windows in time, "
        "the same for all users.",
    )
    validation: str | None = Field(
        default=None,
        description="Split by time: validation window, as a duration that ends where the gap "
        "before the test begins (7d) or as START/END (ISO 8601 or integers; END excluded).",
    )
    test: str | None = Field(
        default=None,
        description="Split by time: test window, as a duration that ends with the last event "
        "(7d) or as START/END (ISO 8601 or integers; events at END or later are dropped).",
    )
    gap: str | None = Field(
        default=None,
        description="Split by time: duration before a window whose events are history but never "
        "a target (30m). Applies before the validation window, and between validation and test "
        "where validation is a duration. None by default.",
    )
    train_end: str | None = Field(
        default=None,
        description="Split by time: end of training (ISO 8601 or integer, excluded). By default "
        "the start of validation less the gap.",
    )

    shard_bytes: int = Field(
        default=128 * 2**20, ge=1, description="Target size of a shard in bytes of events."
    )

    engine: Literal["embedded", "ray"] = Field(
        default="embedded",
        description="Where it runs: embedded (this machine, through its disk) or ray (the Ray "
        "cluster that RAY_ADDRESS names, whose nodes all reach inputs, output and work). The bytes "
        "of the data set are the same.",
    )
    memory: ByteSize | None = Field(
        default=None,
        description="Memory that all tasks together take at most, as 8GiB; by default half of what "
        "is available. What does not fit goes through the disk.",
    )
    workers: int | None = Field(
        default=None, ge=1, description="Tasks at a time; by default one for each processor."
    )
    work: str | None = Field(
        default=None,
        description="Folder for what is under way, which another start of the same command goes on "
        "with; with engine embedded a local one. By default .work in the output, or with engine "
        "embedded and a bucket for output in the temporary folder.",
    )

    @field_validator("inputs", mode="before")
    @classmethod
    def _one_input(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("gap")
    @classmethod
    def _is_duration(cls, value: str | None) -> str | None:
        if value is not None and parse_duration(value) is None:
            raise ValueError(f"'{value}' is no duration; write one as 30m, 12h or 7d")
        return value

    @field_validator("train_end")
    @classmethod
    def _is_time(cls, value: str | None) -> str | None:
        if value is not None:
            parse_time(value, "ns")
        return value

    @field_validator("validation", "test")
    @classmethod
    def _is_window(cls, value: str | None) -> str | None:
        if value is None:
            return value
        duration = parse_duration(value)
        if duration == 0 or (duration is None and parse_window(value, "ns") is None):
            raise ValueError(
                f"'{value}' is no window; write a duration such as 7d, or START/END in ISO 8601"
            )
        return value

    def named(self) -> dict[Use, str]:
        """The columns that were named, by use."""
        uses: dict[Use, str | None] = {
            "user": self.user,
            "item": self.item,
            "timestamp": self.timestamp,
            "action": self.action,
            "rating": self.rating,
        }
        if self.source is None:
            uses |= {"user": self.user or "user", "item": self.item or "item"}
        return {use: name for use, name in uses.items() if name is not None}

    @model_validator(mode="after")
    def _fit_together(self) -> "PrepareOptions":
        if self.append is not None:
            self._check_append()  # the rest is for the options of both together
            return self
        given = list(self.named().values())
        if len(set(given)) != len(given):
            raise ValueError(f"one column is named for two uses: {', '.join(given)}")
        if self.columns is not None:
            if len(set(self.columns)) != len(self.columns):
                raise ValueError("columns holds a name twice")
            for name in given:
                if name not in self.columns:
                    raise ValueError(f"column '{name}' is not among columns: {self.columns}")
        if self.min_rating is None and self.rating is not None:
            raise ValueError("rating and min_rating only work together: give both or neither")
        if self.source is None:
            self.check_uses(set(self.named()))
        self._check_split()
        return self

    def check_uses(self, uses: set[Use]) -> None:
        """Raise ValueError where an option asks for a column that is not among ``uses``."""
        if self.min_rating is not None and "rating" not in uses:
            raise ValueError("rating and min_rating only work together: give both or neither")
        if self.keep_actions is not None and "action" not in uses:
            raise ValueError("keep_actions needs the column of the actions: give action")
        if self.timestamp_unit is not None and "timestamp" not in uses:
            raise ValueError("timestamp_unit needs the column of the times: give timestamp")
        if self.split == "time" and "timestamp" not in uses:
            raise ValueError("a split by time needs the column of the times: give timestamp")

    def _check_append(self) -> None:
        for name in sorted(self.model_fields_set - _OF_AN_EXTENSION):
            raise ValueError(
                f"{name} is that of the data set which append names: leave it out, or prepare anew"
            )

    def _check_split(self) -> None:
        windows = {
            "validation": self.validation,
            "test": self.test,
            "gap": self.gap,
            "train_end": self.train_end,
        }
        if self.split == "leave_one_out":
            for name, value in windows.items():
                if value is not None:
                    raise ValueError(f"{name} only works with split: time")
            return
        for name in ("validation", "test"):
            if windows[name] is None:
                raise ValueError(f"a split by time needs {name}: a duration or START/END")
        if self.gap and self.train_end and "/" in str(self.validation):
            raise ValueError("gap has no use where train_end and both windows are given")


def lasting(options: PrepareOptions) -> dict[str, object]:
    """The options that decide what a data set holds; not from what, where and how it is made."""
    passing = {"inputs", "output", "append", "overwrite", "engine", "memory", "workers", "work"}
    return options.model_dump(mode="json", exclude=passing)


def version() -> str:
    """The version of the checkout that runs, else of the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text())["project"]["version"])
    return importlib.metadata.version("longhaul")
