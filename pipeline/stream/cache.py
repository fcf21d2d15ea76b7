"""Members on the local disk, for all workers of a node: each byte leaves the object store once.

Files are named by the hash of their content, so that data sets, runs and workers can share a
folder, and what a crash left half-written can never be taken for a member.
"""

import os
import sys
import time
import uuid
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ByteSize, ConfigDict, Field

from pipeline.member import sha256 as hash_of

_PARTIAL = ".partial"
_LEFT_BEHIND_SECONDS = 3600.0  # a partial file older than this belongs to nobody
_EVICT_TO = 0.9  # of the limit, so that not every write has to look for room


class CacheConfig(BaseModel):
    """Where members are kept on the local disk, and how much of it they may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="folder on a fast local disk, shared by the workers of a node")
    limit: ByteSize = Field(ByteSize(100 << 30), gt=0, description="size at most, as 100GiB")


class DiskCache:
    """Content by its sha256, the least recently used removed first.

    A disk that is full or broken costs the cache, never the run: it is told once, and reading goes
    on without.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._root = Path(config.path).expanduser().absolute()
        self._limit = int(config.limit)
        self._lock = FileLock(self._root / "lock")
        self._total = self._root / "total"  # bytes kept, counted by all workers under the lock
        self._usable = True
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with self._lock:
                self._count()
        except OSError as error:
            self._give_up(error)

    def get(self, sha256: str) -> bytes | None:
        """The content with this hash, checked; None where it is not kept."""
        path = self._path(sha256)
        try:
            content = path.read_bytes()
            _used_now(path)
        except OSError:
            return None
        if hash_of(content) != sha256:
            path.unlink(missing_ok=True)
            return None
        return content

    def put(self, sha256: str, content: bytes) -> None:
        """Keep ``content``, making room for it where that is needed."""
        if not self._usable or len(content) > self._limit:
            return
        path = self._path(sha256)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
        try:
            with self._lock:
                if path.exists():
                    return
                total = int(self._total.read_text() or 0)
                if total + len(content) > self._limit:
                    total = self._evict(self._limit * _EVICT_TO - len(content))
                self._total.write_text(str(total + len(content)))
            path.parent.mkdir(exist_ok=True)
            partial.write_bytes(content)
            _used_now(partial)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            self._give_up(error)

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of what is kept, the longest unused first."""
        found = []
        for path in self._root.glob("??/*"):
            try:
                seen = path.stat()
            except FileNotFoundError:
                continue
            found.append((seen.st_mtime, seen.st_size, path))
        return sorted(found)

    def _count(self) -> None:
        """What lies there, said anew: workers that died may have left the count wrong."""
        total = sum(size for _, size, _ in self._files())
        self._total.write_text(str(total))

    def _evict(self, wanted: float) -> int:
        """Remove the longest unused until ``wanted`` bytes are left at most; the bytes left."""
        files = self._files()
        newest = max((used for used, _, _ in files), default=0.0)
        total = sum(size for _, size, _ in files)
        for used, size, path in files:
            if path.suffix == _PARTIAL and newest - used < _LEFT_BEHIND_SECONDS:
                continue
            if total <= wanted and path.suffix != _PARTIAL:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total

    def _give_up(self, error: OSError) -> None:
        if self._usable:
            print(
                f"warning: the cache in {self._root} takes nothing more ({error}); "
                "reading goes on without it",
                file=sys.stderr,
                flush=True,
            )
        self._usable = False


def _used_now(path: Path) -> None:
    """The last to go. The file system's own clock ticks too slowly to tell the order."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))
