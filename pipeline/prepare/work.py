"""What is done stays done: each task leaves a record in the work folder, and is not run again.

A record is written when all that it speaks of is. Another start with the same plan takes it over.
"""

import hashlib
from typing import Any, TypeVar

from pydantic import TypeAdapter

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import File

T = TypeVar("T")

_AT_ONCE = 2**24  # bytes


class Unfinished(LonghaulError):
    """Nothing is wrong with the input: what is done is worth keeping."""


class Work:
    """The folder ``url`` of a preparation under way, for the plan with this ``fingerprint``."""

    def __init__(self, url: str, fingerprint: str) -> None:
        self.url = url
        self._plan = {"fingerprint": fingerprint}
        url = self.place("plan.json")
        if not storage.exists(url) or storage.read_json(url) != self._plan:
            self.restart()

    def restart(self) -> None:
        """Forget all that is done."""
        self.remove()
        storage.write_json(self.place("plan.json"), self._plan)

    def place(self, *parts: str) -> str:
        """The URL of a file or folder in it."""
        return storage.join(self.url, *parts)

    def keep(self, name: str, result: Any) -> None:
        """Record the result of a task."""
        content = TypeAdapter(type(result)).dump_json(result)
        storage.write_bytes(self.place("done", f"{name}.json"), content)

    def kept(self, name: str, kind: type[T]) -> T | None:
        """The recorded result of a task, or None."""
        url = self.place("done", f"{name}.json")
        if not storage.exists(url):
            return None
        return TypeAdapter(kind).validate_json(storage.read_bytes(url))

    def names(self) -> list[str]:
        """The names of all records."""
        return [path.removesuffix(".json") for path in storage.files_below(self.place("done"))]

    def forget(self, name: str) -> None:
        """Remove the record of a task, if there is one."""
        storage.remove(self.place("done", f"{name}.json"))

    def remove(self) -> None:
        """Remove the folder with all in it."""
        storage.remove(self.url)


def check_whole(folder: str, files: list[File]) -> None:
    """Raise LonghaulError where a file below ``folder`` is not as it was written."""
    for file in files:
        url = storage.join(folder, file.path)
        digest = hashlib.sha256()
        if storage.exists(url):
            for start in range(0, file.bytes, _AT_ONCE):
                digest.update(storage.read_bytes(url, start, min(file.bytes, start + _AT_ONCE)))
        if digest.hexdigest() != file.sha256:
            raise LonghaulError(f"{url} is not as it was written; start again")
