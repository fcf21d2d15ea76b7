"""Which files are read: files, folders and globs become a list of sources in a fixed order."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.prepare.options import Format, PrepareOptions, Unit, Use

Compression = Literal["gzip", "zstd"]

_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "tsv",  # the atomic files of RecBole
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
}


@dataclass(frozen=True)
class Source:
    """One input file: its absolute URL, how to read it, and its size as stored.

    columns: those to read, by use. names: of all columns, where no line of the file has them.
    delimiter: None for the one of the format. unit: of its times, where the kind of file tells.
    """

    url: str
    format: Format
    compression: Compression | None
    bytes: int
    columns: dict[Use, str] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    delimiter: str | None = None
    unit: Unit | None = None

    @property
    def separator(self) -> str:
        """What separates the columns of delimited text."""
        return self.delimiter or {"csv": ",", "tsv": "\t"}.get(self.format, " ")


def list_sources(options: PrepareOptions) -> list[Source]:
    """The input files, in the order in which their rows count.

    Raises LonghaulError where an input does not exist, matches nothing, has an unknown suffix,
    is empty, or is named twice.
    """
    sources: list[Source] = []
    seen: set[str] = set()
    for entry in options.inputs:
        for url, size in _expand(entry):
            if url in seen:
                raise LonghaulError(
                    f"input {url} is given twice, so its events would count twice; name it once"
                )
            seen.add(url)
            if size == 0:
                raise LonghaulError(f"input {url} is empty; remove it or write it again")
            sources.append(_source(url, size, options))
    return sources


def _expand(entry: str) -> list[tuple[str, int]]:
    """URL and size of each file that ``entry`` stands for, sorted by URL."""
    entry = storage.absolute(entry)
    fs, path = storage.filesystem(entry)
    with storage.told(entry, "list"):
        if fs.isfile(path):
            return [(entry, int(fs.size(path)))]
        if fs.isdir(path):
            found = fs.find(path, detail=True)
            root = path.rstrip("/") + "/"
            # As Spark and Arrow do: names that begin with _ or . are marks, not data.
            visible = {
                name: info
                for name, info in found.items()
                if not name.endswith("/")  # an object that only stands for a folder
                and not any(p.startswith((".", "_")) for p in name.removeprefix(root).split("/"))
            }
            missing = f"input folder {entry} holds no files"
        elif any(character in entry for character in "*?["):
            visible = {
                name: info
                for name, info in fs.glob(path, detail=True).items()
                if info["type"] == "file"
            }
            missing = f"no file matches the input {entry}"
        else:
            visible, missing = {}, f"input {entry} does not exist"
    if not visible:
        raise LonghaulError(missing)
    local = storage.is_local(entry)
    return sorted(
        (name if local else fs.unstrip_protocol(name), int(info["size"]))
        for name, info in visible.items()
    )


def _source(url: str, size: int, options: PrepareOptions) -> Source:
    name = url.lower()
    compression: Compression | None = None
    for suffix, kind in _COMPRESSIONS.items():
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), kind
    known = options.format
    if known is None:
        known = next((kind for suffix, kind in _FORMATS.items() if name.endswith(suffix)), None)
    if known is None and options.source is not None:
        known = "text"  # until its first line is seen
    if known is None:
        raise LonghaulError(
            f"input {url}: its suffix names no format; set format to one of "
            f"{', '.join(get_args(Format))}"
        )
    return Source(url, known, compression, size)
