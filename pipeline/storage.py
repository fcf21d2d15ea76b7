"""Files by URL: a local folder and a bucket behave alike.

Every path in longhaul is an fsspec URL. This module is the only one that knows how a write becomes
visible at once (a rename locally, one upload in an object store), that an outage is waited out, and
how the many exceptions of the storage clients become one line for the reader.
"""

import contextlib
import io
import json
import os
import posixpath
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from pipeline.errors import DamagedError, LonghaulError
from pipeline.transient import outlast, read_again

T = TypeVar("T")

_READ_AHEAD = 4 << 20  # bytes


def is_local(url: str) -> bool:
    """True for a plain path or a ``file://`` URL."""
    return "://" not in url or url.startswith("file://")


def absolute(url: str) -> str:
    """The URL with a relative local path resolved against the working directory.

    Raises LonghaulError where it holds a password: URLs are written into runs, jobs and logs.
    """
    if is_local(url):
        return str(Path(url.removeprefix("file://")).expanduser().absolute())
    parts = urlsplit(url)
    if parts.password is not None:
        raise LonghaulError(
            f"the URL {parts.scheme}://...@{parts.hostname}{parts.path} holds a password, which "
            "would end up in files and logs: give it to the storage client by its environment"
        )
    return url.rstrip("/")


def join(url: str, *parts: str) -> str:
    """``url`` with ``parts`` appended, separated by single slashes."""
    return posixpath.join(url.rstrip("/"), *parts)


@contextmanager
def told(url: str, action: str, kind: type[Exception] = Exception) -> Iterator[None]:
    """Turn a storage exception raised inside into one line that names ``action`` and ``url``.

    kind: OSError where code of others runs inside, whose mistakes are not the storage's.
    """
    try:
        yield
    except LonghaulError:
        raise
    except FileNotFoundError as error:
        raise LonghaulError(f"cannot {action} {url}: it does not exist") from error
    except PermissionError as error:
        raise LonghaulError(f"cannot {action} {url}: permission denied ({error})") from error
    except kind as error:  # storage clients raise types of their own, from botocore to aiohttp
        if type(error).__name__ == "FlexibleChecksumError":  # botocore's, for whole objects
            raise DamagedError(f"{url} is damaged: its checksum is not the store's") from error
        reason = str(error).strip().splitlines()
        detail = reason[0] if reason else "no further detail"
        raise LonghaulError(f"cannot {action} {url}: {type(error).__name__}: {detail}") from error


def _persist(url: str, action: str, call: Callable[[], T]) -> T:
    """``call()``, waiting out what may pass; what does not becomes one line."""
    with told(url, action):
        return outlast(call, f"{action} {url}")


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of ``url`` and the path in it.

    Listings are never cached: what another worker wrote a moment ago must be visible.
    """
    with told(url, "open"):
        options: dict[str, Any] = {} if is_local(url) else {"use_listings_cache": False}
        if url.startswith("s3://"):
            # s3fs and ``outlast`` try again; botocore below them would multiply the pauses.
            options["config_kwargs"] = {"retries": {"total_max_attempts": 1}}
        fs, path = fsspec.core.url_to_fs(url, **options)
        return fs, path


def exists(url: str) -> bool:
    """Whether a file or a folder (for a bucket: a prefix with at least one object) is there."""
    fs, path = filesystem(url)
    return bool(_persist(url, "look at", lambda: fs.exists(path)))


def read_bytes(url: str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes ``[start, stop)`` of a file (all of it by default), read in one request."""
    if is_local(url):
        # As fsspec does it, in a fifth of the time.
        return _persist(url, "read", lambda: _read_local(absolute(url), start or 0, stop))
    fs, path = filesystem(url)

    def read() -> bytes:
        content: bytes = _persist(url, "read", lambda: fs.cat_file(path, start=start, end=stop))
        return content

    return read_again(read)


def _read_local(path: str, start: int, stop: int | None) -> bytes:
    with open(path, "rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size if stop is None else stop
        parts = []
        while start < end and (part := os.pread(file.fileno(), end - start, start)):
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Ranges(io.RawIOBase):
    """A file in a store, read in ranges."""

    def __init__(self, url: str) -> None:
        self._url = url
        fs, path = filesystem(url)
        self._size: int = _persist(url, "look at", lambda: fs.size(path))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        content = read_bytes(self._url, self._at, stop)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


def opened(url: str) -> IO[bytes]:
    """A file to read here and there; a few megabytes are read at a time, outages waited out."""
    return io.BufferedReader(_Ranges(url), _READ_AHEAD)


def read_json(url: str) -> Any:
    """The JSON document at ``url``."""
    content = read_bytes(url)
    try:
        return json.loads(content)
    except ValueError as error:
        raise LonghaulError(f"{url} is not valid JSON: {error}") from error


def write_bytes(url: str, content: bytes) -> None:
    """Write a file that appears whole or not at all; a large one goes in parallel parts."""
    if is_local(url):
        with create(url) as file:
            file.write(content)
        return
    fs, path = filesystem(url)
    _persist(url, "write", lambda: fs.pipe_file(path, content))


def write_json(url: str, document: Any) -> None:
    """Write ``document`` as indented JSON with sorted keys, whole or not at all."""
    write_bytes(url, json.dumps(document, indent=2, sort_keys=True).encode() + b"\n")


@contextmanager
def create(url: str) -> Iterator[IO[bytes]]:
    """A file to write that appears whole when the block ends, and not at all when it raises.

    Locally it is written beside its place, flushed to the disk and renamed. What is for an object
    store is gathered in a temporary file and uploaded when it is complete.
    """
    fs, path = filesystem(url)
    if not is_local(url):
        with tempfile.NamedTemporaryFile(prefix="longhaul-") as gathered:
            with told(url, "write", OSError):
                yield gathered
                gathered.flush()
            _persist(url, "write", lambda: fs.put_file(gathered.name, path))
        return
    target = Path(path)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    with told(url, "write", OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as local:
                yield local
                local.flush()
                os.fsync(local.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def files_below(url: str) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted; empty where it does not exist."""
    fs, path = filesystem(url)
    root = path.rstrip("/") + "/"
    found = _persist(url, "list", lambda: fs.find(path))
    return sorted(name[len(root) :] for name in found if name.startswith(root))


def folders_in(url: str) -> list[str]:
    """Names of the folders directly below ``url``, sorted; empty where it does not exist."""
    return sorted({name.split("/", 1)[0] for name in files_below(url) if "/" in name})


def remove(url: str) -> None:
    """Remove a file, or a folder with all below it; nothing happens where there is none."""
    fs, path = filesystem(url)

    def gone() -> None:
        # What another worker, or an attempt of ours that only seemed to fail, removed is removed.
        with contextlib.suppress(FileNotFoundError):
            if fs.exists(path):
                fs.rm(path, recursive=True)

    _persist(url, "remove", gone)
