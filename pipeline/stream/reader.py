"""Members when they are needed: read ahead in threads, kept in memory or on the local disk.

None of it changes what is trained; a reader that keeps nothing gives the same members.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from pipeline import storage
from pipeline.fast_ranges import read_range
from pipeline.manifest import Dataset, ReadRange
from pipeline.member import Head
from pipeline.stream.cache import CacheConfig, DiskCache


class ReadingConfig(BaseModel):
    """How a worker reads. Sizes are bytes or words as 512MiB."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    client: Literal["fsspec", "obstore"] = Field(
        "fsspec", description="obstore: quicker on object stores; the package must be installed"
    )
    threads: int = Field(8, ge=1, description="members read at the same time by a worker")
    ahead: ByteSize = Field(
        ByteSize(256 << 20),
        ge=0,
        description="bytes a worker may have read before they are needed; what is needed at once "
        "is read whatever this says",
    )
    memory: ByteSize = Field(
        ByteSize(1 << 30),
        ge=0,
        description="bytes of members a worker keeps for later epochs: what fits is read once",
    )
    cache: CacheConfig | None = Field(None, description="members on the local disk; or null")


_RUN_BYTES = 1 << 20


class MemberReader:
    """The members of a data set for one worker, with what it will want next read beforehand.

    Used from one thread; reads in several.
    """

    def __init__(self, dataset: Dataset, config: ReadingConfig) -> None:
        self._dataset = dataset
        self._read_range: ReadRange = (
            read_range if config.client == "obstore" else storage.read_bytes
        )
        self._bound = int(config.ahead)
        self._keep = int(config.memory)
        self._cache = DiskCache(config.cache) if config.cache else None
        self._threads = ThreadPoolExecutor(config.threads, thread_name_prefix="member-reader")
        self._coming: deque[int] = deque()  # wanted later, in this order, not begun
        self._begun: dict[int, Future[dict[int, Head]]] = {}  # read together, in runs
        self._begun_bytes = 0
        self._kept: dict[int, Head] = {}
        self._kept_bytes = 0

    def ahead(self, members: Iterable[int]) -> None:
        """Tell which members will be taken after all those told before."""
        self._coming.extend(member for member in members if member not in self._kept)
        self._begin_what_fits()

    def take(self, members: Sequence[int]) -> list[Head]:
        """These members, waiting where they are not there yet.

        Raises LonghaulError, naming shard and member, where one cannot be read.
        """
        wanted = set(members) - self._kept.keys()
        self._coming = deque(member for member in self._coming if member not in wanted)
        self._begin(m for m in members if m in wanted and m not in self._begun)
        taken = []
        for member in members:
            if member in self._kept:
                taken.append(self._kept[member])
                continue
            read = self._begun.pop(member).result()[member]
            self._begun_bytes -= self._size(member)
            if self._kept_bytes + self._size(member) <= self._keep:
                self._kept[member] = read
                self._kept_bytes += self._size(member)
            taken.append(read)
            if self._begun_bytes + _RUN_BYTES <= self._bound:
                self._begin_what_fits()
        self._begin_what_fits()
        return taken

    def forget_plans(self) -> None:
        """Read nothing more ahead: the order has changed. What is kept stays."""
        self._coming.clear()
        for future in self._begun.values():
            future.cancel()
        self._begun.clear()
        self._begun_bytes = 0

    def close(self) -> None:
        """Stop reading; what is being read is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _size(self, member: int) -> int:
        return int(self._dataset.head[member])

    def _begin_what_fits(self) -> None:
        room = self._bound - self._begun_bytes
        fitting = []
        while self._coming and self._size(self._coming[0]) <= room:
            fitting.append(self._coming.popleft())
            room -= self._size(fitting[-1])
        self._begin(fitting)

    def _begin(self, members: Iterable[int]) -> None:
        """Have the members read, in runs: to hand over each by itself takes longer than to read it.

        Small ones are read one after the other in a run of ``_RUN_BYTES``, a large one alone.
        """
        run: list[int] = []
        room = _RUN_BYTES
        for member in members:
            size = self._size(member)
            if run and size > room:
                self._submit(run)
                run, room = [], _RUN_BYTES
            run.append(member)
            room -= size
            self._begun_bytes += size
        if run:
            self._submit(run)

    def _submit(self, run: list[int]) -> None:
        read = self._threads.submit(lambda: {member: self._read(member) for member in run})
        self._begun |= dict.fromkeys(run, read)

    def _read(self, member: int) -> Head:
        sha256 = self._dataset.head_sha256[member]
        content = self._cache.get(sha256) if self._cache else None
        if content is None:
            content = self._dataset.fetch_head(member, self._read_range)
            if self._cache:
                self._cache.put(sha256, content)
        return self._dataset.decode_head(member, content)
