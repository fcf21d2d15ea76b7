"""The output folder: what may be replaced there, and what is never touched."""

import re

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import BAD_ROWS, INDEX, ITEMS, MANIFEST, SHARDS, USERS
from pipeline.prepare.card import CARD, PAGE
from pipeline.prepare.work import Work

_NAMES = "|".join(re.escape(name) for name in (MANIFEST, INDEX, ITEMS, CARD, PAGE, BAD_ROWS))
_PARTIAL = r"(\.[0-9a-f]{8}\.partial)?"
_SHARD = re.compile(rf"{SHARDS}/\.?\d{{5,}}\.tar{_PARTIAL}")
_MAP = re.compile(rf"{USERS}/\.?\d{{5,}}\.parquet{_PARTIAL}")
_OURS = re.compile(rf"\.?({_NAMES}){_PARTIAL}|{_SHARD.pattern}|{_MAP.pattern}")

WORK = ".work"  # what is under way


def _files_of_ours(output: str) -> list[str]:
    """Files that look like a data set's, by name: the manifest first, the shards last."""
    found = [name for name in storage.files_below(output) if _OURS.fullmatch(name)]
    return sorted(found, key=lambda name: (name != MANIFEST, name.startswith(SHARDS), name))


def _is_shard(url: str) -> bool:
    """Whether a tar is one that prepare wrote: its entries belong to the user ``longhaul``."""
    header = storage.read_bytes(url, 0, 512)
    return header[265:274] == b"longhaul\0" or not any(header)


def check_output(output: str, overwrite: bool, inputs: list[str]) -> None:
    """Raise LonghaulError where a data set must not be written to ``output``.

    That is where one already exists (unless ``overwrite``), where other files lie that an
    interrupted run cannot have left, or where an input would be replaced.
    """
    fs, path = storage.filesystem(output)
    with storage.told(output, "look at"):
        if fs.isfile(path):
            raise LonghaulError(f"output {output} is a file; name a folder")
    present = [name for name in storage.files_below(output) if not name.startswith(f"{WORK}/")]
    if MANIFEST in present:
        if not overwrite:
            raise LonghaulError(
                f"output {output} already holds a data set; choose another folder, "
                "or replace it with overwrite"
            )
    elif present:
        shards = [name for name in present if _SHARD.fullmatch(name)]
        whole = [name for name in shards if name.endswith(".tar")]
        if not shards or not all(_is_shard(storage.join(output, name)) for name in whole[:1]):
            raise LonghaulError(
                f"output {output} is not empty (it holds {present[0]}) and is no data set; "
                "choose another folder"
            )
    doomed = {storage.join(output, name) for name in _files_of_ours(output)}
    for url in inputs:
        if url in doomed:
            raise LonghaulError(f"input {url} lies in the output and would be replaced; move it")


def clear_output(output: str) -> None:
    """Remove a data set, or what an interrupted run left of one; the manifest goes first."""
    for name in _files_of_ours(output):
        storage.remove(storage.join(output, name))


def begin_output(output: str, work: Work) -> None:
    """Make room for a data set, once; after that only what a killed writer left half done goes."""
    if work.kept("cleared", bool):
        clear_partial(output)
        return
    clear_output(output)
    work.keep("cleared", True)


def clear_partial(output: str) -> None:
    """Remove what writers left half done that were killed, by us or with their node."""
    for name in _files_of_ours(output):
        if name.endswith(".partial"):
            storage.remove(storage.join(output, name))
