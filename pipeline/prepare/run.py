"""The stage itself: raw event logs in, a data set out, the manifest last."""

import importlib.metadata
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import MANIFEST, SCHEMA_VERSION, File, Lineage, Manifest, Split
from pipeline.prepare.filters import (
    Counts,
    filter_counts,
    filter_end,
    filter_repeats,
    filter_rows,
)
from pipeline.prepare.histories import Catalogue, Histories, build_histories
from pipeline.prepare.inputs import list_sources
from pipeline.prepare.layout import shard_count, shard_of, users_per_member
from pipeline.prepare.log import Log, order
from pipeline.prepare.options import PrepareOptions
from pipeline.prepare.output import check_output, clear_output
from pipeline.prepare.read import read
from pipeline.prepare.split import resolve_split
from pipeline.prepare.write import (
    Shard,
    count_items,
    write_index,
    write_items,
    write_shard,
    write_users,
)


class Progress(Protocol):
    """Hears how far a stage is; ``total`` is None where it is not known."""

    def __call__(self, stage: str, done: int, total: int | None) -> None: ...


def run(options: PrepareOptions, progress: Progress | None = None) -> Manifest:
    """Read, filter, split and write; see ``pipeline.prepare.prepare``."""
    tell: Progress = progress or (lambda stage, done, total: None)
    output = storage.absolute(options.output)
    sources = list_sources(options)
    check_output(output, options.overwrite, [source.url for source in sources])

    size = sum(source.bytes for source in sources)
    log, lineage = read(options, sources, _meter(tell, "read", size))
    tell("sort", 0, None)
    histories, catalogue, split, counts = select(log, options)
    del log  # the histories hold what is needed of it

    # Nothing was touched so far: a mistake in the input leaves an older data set as it is.
    clear_output(output)
    try:
        return _write(output, options, histories, catalogue, split, counts, lineage, tell)
    except BaseException:  # Ctrl-C as well
        with suppress(LonghaulError):  # without a manifest it is no data set; the cause matters
            clear_output(output)
        raise


def _meter(tell: Progress, stage: str, total: int) -> Callable[[int], None]:
    """A function that adds up what it is called with and tells the sum."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell(stage, done, total)

    advance(0)
    return advance


def select(log: Log, options: PrepareOptions) -> tuple[Histories, Catalogue, Split, dict[str, int]]:
    """The histories that are kept of a log in the order of files and rows, and the counts."""
    counts = Counts(len(log))
    log = filter_rows(log, options, counts)
    split = resolve_split(options, log)
    if split.test is not None and "/" in str(options.test):
        log = filter_end(log, split.test[1], counts)
    log = order(log)
    log = filter_repeats(log, options, counts)
    log = filter_counts(log, options, counts)
    histories, catalogue = build_histories(log, split)
    left = {"users": len(histories), "items": len(catalogue), "events": len(histories.items)}
    return histories, catalogue, split, counts.removed | left


def _write(
    output: str,
    options: PrepareOptions,
    histories: Histories,
    catalogue: Catalogue,
    split: Split,
    counts: dict[str, int],
    lineage: list[File],
    tell: Progress,
) -> Manifest:
    events = len(histories.items)
    fields = (histories.items, histories.times, histories.actions)
    bytes_per_event = sum(field.itemsize for field in fields if field is not None)
    number = shard_count(events, bytes_per_event, options.shard_bytes)
    # Users are in the order of their hash, so a shard is a range of them.
    edges = np.searchsorted(shard_of(histories.hashes, number), np.arange(number + 1))
    most_users = users_per_member(len(histories))
    advance = _meter(tell, "write", events)
    shards: list[Shard] = []
    occurrences = np.zeros((2, len(catalogue)), np.int64)
    for shard in range(number):
        partition = histories.slice(int(edges[shard]), int(edges[shard + 1]))
        shards.append(write_shard(output, shard, partition, most_users, advance))
        occurrences += count_items(partition, len(catalogue))

    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        catalogue_size=len(catalogue),
        users=len(histories),
        events=events,
        members=sum(len(shard.index) for shard in shards),
        user_type=_type_name(histories.user_keys),
        item_type=_type_name(catalogue.item_keys),
        timestamp_unit=histories.unit,
        actions=catalogue.actions,
        split=split,
        counts=counts,
        index=write_index(output, shards),
        items=write_items(output, catalogue, occurrences),
        user_keys=write_users(output, histories, shards),
        shards=[shard.file for shard in shards],
        lineage=Lineage(
            inputs=lineage,
            # Where it was written does not belong to what it is made from.
            options=options.model_dump(mode="json", exclude={"inputs", "output", "overwrite"}),
            version=_version(),
        ),
    )
    # Not storage.write_json: that sorts keys, and the counts are told in the order applied.
    content = manifest.model_dump_json(indent=2).encode() + b"\n"
    storage.write_bytes(storage.join(output, MANIFEST), content)
    return manifest


def _type_name(keys: pa.Array) -> Literal["int64", "string"]:
    return "int64" if pa.types.is_integer(keys.type) else "string"


def _version() -> str:
    """The version of the checkout that runs, else of the installed package."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text())["project"]["version"])
    return importlib.metadata.version("longhaul")
