"""Which column is which: as the options say, or as a known data set writes its files.

A preset is a list of ways in which its files are written. The first that fits the top of a file is
taken: its names where it has any, else the look of its first line.
"""

import re
from dataclasses import dataclass, field, replace

from pipeline.errors import LonghaulError
from pipeline.prepare import explain
from pipeline.prepare.formats import names_in
from pipeline.prepare.inputs import Source
from pipeline.prepare.options import Format, PrepareOptions, Preset, Unit, Use


@dataclass(frozen=True)
class Way:
    """One way in which the files of a preset are written.

    optional: columns that are taken where a file has them. names, row: of a file that does not
    name its columns, all of them in order, and the pattern of a line.
    """

    told: str
    format: Format
    columns: dict[Use, str]
    optional: dict[Use, str] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    row: str = ""
    delimiter: str | None = None
    unit: Unit | None = None


_FOUR: dict[Use, str] = {
    "user": "user",
    "item": "item",
    "rating": "rating",
    "timestamp": "timestamp",
}
_USER_FIRST = ("user", "item", "rating", "timestamp")
_ITEM_FIRST = ("item", "user", "rating", "timestamp")
# Amazon's ids: the ratings of 2014 and 2018 differ in which comes first.
_REVIEWER, _ASIN = r"A[0-9A-Z]{9,}", r"(B[0-9A-Z]{9}|[0-9]{9}[0-9X])"
_2018: dict[Use, str] = {
    "user": "reviewerID",
    "item": "asin",
    "rating": "overall",
    "timestamp": "unixReviewTime",
}
_2023: dict[Use, str] = {
    "user": "user_id",
    "item": "parent_asin",
    "rating": "rating",
    "timestamp": "timestamp",
}
_MOVIES: dict[Use, str] = {
    "user": "userId",
    "item": "movieId",
    "rating": "rating",
    "timestamp": "timestamp",
}

WAYS: dict[Preset, list[Way]] = {
    "movielens": [
        Way("ratings.csv", "csv", _MOVIES, unit="s"),
        Way(
            "ratings.dat",
            "tsv",
            _FOUR,
            names=_USER_FIRST,
            row=r"\d+::\d+::[\d.]+::\d+",
            delimiter="::",
            unit="s",
        ),
        Way(
            "u.data",
            "tsv",
            _FOUR,
            names=_USER_FIRST,
            row=r"\d+\t\d+\t[\d.]+\t\d+",
            unit="s",
        ),
    ],
    "amazon": [
        Way("reviews of 2014 and 2018", "jsonl", _2018, unit="s"),
        Way("reviews of 2023", "jsonl", _2023, unit="ms"),
        Way("ratings of 2023", "csv", _2023, unit="ms"),
        Way(
            "ratings of 2014",
            "csv",
            _FOUR,
            names=_USER_FIRST,
            row=rf"{_REVIEWER},{_ASIN},[\d.]+,\d+",
            unit="s",
        ),
        Way(
            "ratings of 2018",
            "csv",
            _FOUR,
            names=_ITEM_FIRST,
            row=rf"{_ASIN},{_REVIEWER},[\d.]+,\d+",
            unit="s",
        ),
    ],
    "recbole": [
        Way(
            f"{user} in .inter",
            "tsv",
            {"user": user, "item": "item_id"},
            optional={"rating": "rating", "timestamp": "timestamp"},
        )
        for user in ("user_id", "session_id")
    ],
    # Times are seconds since the log began, in steps of five.
    "yambda": [
        Way(
            "listens, likes and multi_event, flat or sequential",
            "parquet",
            {"user": "uid", "item": "item_id", "timestamp": "timestamp"},
            optional={"action": "event_type", "rating": "played_ratio_pct"},
            unit="s",
        )
    ],
}


def lay_out(sources: list[Source], options: PrepareOptions) -> list[Source]:
    """The sources with their columns.

    Raises LonghaulError where a file is written in no way of its preset, or files do not have
    columns for the same uses.
    """
    laid = [
        _named(source, options) if options.source is None else _known(source, options)
        for source in sources
    ]
    first = laid[0]
    for other in laid[1:]:
        for use in sorted(first.columns.keys() ^ other.columns.keys()):
            has, lacks = (first, other) if use in first.columns else (other, first)
            raise LonghaulError(
                f"{has.url} has a column for {use}, {lacks.url} has none; prepare them apart"
            )
    for source in laid:
        if source.names is not None:
            explain.check_columns(source, list(source.names))
        if source.format == "csv" and len(source.separator) > 1:
            raise LonghaulError(
                f"input {source.url} is csv, where delimiter {source.separator!r} has to be one "
                "character; set format to tsv, which has no quotes"
            )
    return laid


def check_uses(sources: list[Source], options: PrepareOptions) -> None:
    """Raise LonghaulError where an option asks for a column that known files do not have."""
    try:
        options.check_uses(set(sources[0].columns))
    except ValueError as error:
        has = ", ".join(sources[0].columns)
        raise LonghaulError(f"{sources[0].url} has columns for {has} only: {error}") from error


def _named(source: Source, options: PrepareOptions) -> Source:
    """As the options name its columns."""
    columns, names = options.named(), options.columns
    own = source.format in ("parquet", "jsonl")
    if own and names is not None:
        raise LonghaulError(
            f"input {source.url} is {source.format}, which names its columns itself; "
            "leave columns out"
        )
    if options.delimiter is not None and (own or source.format == "text"):
        raise LonghaulError(
            f"input {source.url} is {source.format}, which has no delimiter to choose; set format "
            "to csv or tsv, or leave delimiter out"
        )
    if names is None and source.format == "text":
        names = [columns["user"], columns["item"]]
        more = [name for name in columns.values() if name not in names]
        if more:
            raise LonghaulError(
                f"input {source.url} is text, which by default has the columns {names[0]} and "
                f"{names[1]} only, not {more[0]}; name all its columns, in order, with columns"
            )
    return replace(
        source,
        columns=columns,
        names=None if names is None else tuple(names),
        delimiter=options.delimiter,
    )


def _known(source: Source, options: PrepareOptions) -> Source:
    """As the first way of the preset has them that fits, where the options name no others."""
    assert options.source is not None
    skip = options.bad_rows == "skip"
    given = options.named()
    # Parquet and JSON show by their suffix; text of any other may be of any kind.
    ways = [
        way
        for way in WAYS[options.source]
        if (way.format == source.format)
        or (options.format is None and {way.format, source.format}.isdisjoint({"parquet", "jsonl"}))
    ]
    for way in ways:
        as_way = replace(
            source,
            format=way.format,
            names=way.names if options.columns is None else tuple(options.columns),
            delimiter=options.delimiter or way.delimiter,
            unit=way.unit if "timestamp" not in given else None,
        )
        if way.names is None or options.columns is not None:
            found = list(as_way.names or names_in(as_way, skip))
        else:
            line = explain.first_line(source)
            found = list(way.names) if re.fullmatch(way.row, line) else []
        required = {use: _among(found, name) for use, name in way.columns.items()}
        columns = {use: name for use, name in (required | given).items() if name is not None}
        if len(columns) < len(required):
            continue
        for use, name in way.optional.items():
            here = _among(found, name)
            if here is not None:
                columns.setdefault(use, here)
        if options.min_rating is None:
            columns.pop("rating", None)
        return replace(as_way, columns=columns)
    told = "; ".join(way.told for way in WAYS[options.source])
    raise LonghaulError(
        f"input {source.url} is nothing that source {options.source} reads ({told}); give only "
        "its files of events, or leave source out and name the columns"
    )


def _among(found: list[str], name: str) -> str | None:
    """The column of this name, or of this name with RecBole's type after it."""
    typed = [column for column in found if column.startswith(f"{name}:")]
    return name if name in found else typed[0] if typed else None
