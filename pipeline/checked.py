"""Files with their sizes and hashes: what a manifest says of them, and reading by it."""

import hashlib

from pydantic import BaseModel, ConfigDict

from pipeline import storage
from pipeline.errors import DamagedError
from pipeline.transient import read_again


class FileEntry(BaseModel):
    """A file by its path relative to the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    bytes: int
    sha256: str


def write_file(folder: str, path: str, content: bytes) -> FileEntry:
    """Write a file below ``folder``; its entry."""
    storage.write_bytes(storage.join(folder, path), content)
    return FileEntry(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def read_checked(folder: str, entry: FileEntry, manifest: str) -> bytes:
    """A file's bytes. DamagedError, naming it, where they are not those that were written."""
    url = storage.join(folder, entry.path)

    def read() -> bytes:
        content = storage.read_bytes(url)
        if len(content) != entry.bytes:
            raise DamagedError(
                f"{url} is cut short: {len(content):,} bytes, {manifest} says {entry.bytes:,}"
                if len(content) < entry.bytes
                else f"{url} is damaged: {len(content):,} bytes, {manifest} says {entry.bytes:,}"
            )
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise DamagedError(f"{url} is damaged: it does not have the hash in {manifest}")
        return content

    return read_again(read)
