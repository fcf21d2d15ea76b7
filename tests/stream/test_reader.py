"""Reading ahead, keeping, caching: never another member, never more room than was given."""

import errno
import hashlib
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset, ReadRange
from pipeline.stream.cache import CacheConfig, DiskCache
from pipeline.stream.reader import MemberReader, ReadingConfig
from tests.conftest import prepare_histories, random_histories

SIZES = st.integers(0, 20_000)


class Counting(Dataset):
    """A data set that counts what is fetched, and what of it was not yet taken."""

    def fetch_head(self, member: int, read: ReadRange = storage.read_bytes) -> bytes:
        with LOCK:
            FETCHED.append(member)
        return super().fetch_head(member, read)


LOCK = threading.Lock()
FETCHED: list[int] = []


@pytest.fixture
def fetched() -> list[int]:
    FETCHED.clear()
    return FETCHED


def counting(dataset: Dataset) -> Counting:
    return Counting(**vars(dataset))


def size(dataset: Dataset, members: list[int]) -> int:
    return int(dataset.head[members].sum())


@settings(max_examples=40)
@given(data=st.data(), ahead=SIZES, memory=SIZES)
def test_any_bounds_give_the_same_members(
    small_set: Dataset, data: st.DataObject, ahead: int, memory: int
) -> None:
    numbers = st.lists(st.integers(0, len(small_set) - 1), max_size=12, unique=True)
    reader = MemberReader(small_set, ReadingConfig(threads=3, ahead=ahead, memory=memory))
    for _ in range(2):
        groups = data.draw(st.lists(numbers, max_size=4))
        for group in groups:
            reader.ahead(group)
        for group in groups:
            for number, member in zip(group, reader.take(group), strict=True):
                wanted = small_set.read(number)
                assert np.array_equal(member.items, wanted.items)
                assert np.array_equal(member.offsets, wanted.offsets)
        reader.forget_plans()
    reader.close()


def test_no_more_is_read_ahead_than_the_bound(small_set: Dataset, fetched: list[int]) -> None:
    members = list(range(len(small_set)))
    bound = size(small_set, members[:10])
    dataset = counting(small_set)
    reader = MemberReader(dataset, ReadingConfig(ahead=bound, memory=0))
    reader.ahead(members)
    for taken, member in enumerate(members, start=1):
        reader.take([member])
        # What was begun and not taken is what was read ahead, whether it is there yet or not.
        begun = [m for m in members[taken:] if m in reader._begun]
        assert size(dataset, begun) <= bound
        assert begun or taken == len(members), "nothing is read ahead"
    reader.close()
    assert sorted(fetched) == sorted(set(fetched))


def test_a_set_that_fits_in_memory_is_read_once(tmp_path: Path, fetched: list[int]) -> None:
    dataset = counting(prepare_histories(random_histories(80, 20, seed=2), tmp_path))
    members = list(range(len(dataset)))
    reader = MemberReader(dataset, ReadingConfig(memory=size(dataset, members)))
    first = reader.take(members)
    shutil.rmtree(Path(dataset.url, "shards"))
    reader.ahead(members)
    again = reader.take(members[::-1])
    assert [id(member) for member in again] == [id(member) for member in first[::-1]]
    assert sorted(fetched) == members
    reader.close()


def test_what_does_not_fit_in_memory_is_read_again(small_set: Dataset, fetched: list[int]) -> None:
    members = list(range(len(small_set)))
    half = size(small_set, members) // 2
    reader = MemberReader(counting(small_set), ReadingConfig(memory=half))
    reader.take(members)
    before = len(fetched)
    reader.take(members)
    again = fetched[before:]
    assert 0 < len(again) < before
    assert size(small_set, sorted(set(members) - set(again))) <= half
    reader.close()


def test_workers_share_a_cache(tmp_path: Path, fetched: list[int]) -> None:
    dataset = counting(prepare_histories(random_histories(80, 20, seed=2), tmp_path))
    members = list(range(len(dataset)))
    reading = ReadingConfig(memory=0, cache=CacheConfig(path=str(tmp_path / "cache")))
    one, other = MemberReader(dataset, reading), MemberReader(dataset, reading)
    wanted = [member.items.tolist() for member in one.take(members)]
    spoiled = sorted((tmp_path / "cache").glob("??/*"))[3]
    spoiled.write_bytes(spoiled.read_bytes()[:-1] + b"?")
    del fetched[:]
    assert [member.items.tolist() for member in other.take(members)] == wanted
    assert len(fetched) == 1  # the spoiled one
    shutil.rmtree(Path(dataset.url, "shards"))
    assert [member.items.tolist() for member in one.take(members)] == wanted
    one.close()
    other.close()


def contents(lengths: list[int]) -> list[bytes]:
    return [bytes([number % 256]) * length for number, length in enumerate(lengths, start=1)]


def name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("??/*"))


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(0, 60), max_size=30), limit=st.integers(1, 150))
def test_a_cache_stays_below_its_limit(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    config = CacheConfig(path=str(folder), limit=limit)
    caches = [DiskCache(config), DiskCache(config)]
    for number, content in enumerate(contents(lengths)):
        caches[number % 2].put(name(content), content)
        assert kept_bytes(folder) <= limit
        assert caches[0].get(name(content)) == (content if len(content) <= limit else None)


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(CacheConfig(path=str(tmp_path), limit=100))
    a, b, c = contents([40, 40, 40])
    cache.put(name(a), a)
    cache.put(name(b), b)
    assert cache.get(name(a)) == a  # used after b
    cache.put(name(c), c)
    assert [cache.get(name(x)) for x in (a, b, c)] == [a, None, c]


def test_processes_that_write_at_once_stay_below_the_limit(tmp_path: Path) -> None:
    script = (
        "import hashlib, sys\n"
        "from pipeline.stream.cache import CacheConfig, DiskCache\n"
        "cache = DiskCache(CacheConfig(path=sys.argv[1], limit=50_000))\n"
        "for n in range(200):\n"
        "    content = f'{sys.argv[2]} {n}'.encode() * 100\n"
        "    cache.put(hashlib.sha256(content).hexdigest(), content)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(writer)])
        for writer in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert 25_000 < kept_bytes(tmp_path) <= 50_000
    assert int((tmp_path / "total").read_text()) == kept_bytes(tmp_path)


def test_a_full_disk_costs_the_cache_and_not_the_run(
    small_set: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".partial":
            real(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    reading = ReadingConfig(memory=0, cache=CacheConfig(path=str(tmp_path)))
    reader = MemberReader(small_set, reading)
    members = list(range(len(small_set)))
    assert len(reader.take(members)) == len(reader.take(members)) == len(members)
    told = capsys.readouterr().err
    assert told.count("No space left on device") == 1
    assert "reading goes on without it" in told
    assert not list(tmp_path.glob("??/*"))
    reader.close()


def test_a_missing_shard_is_told_with_its_member(small_set: Dataset) -> None:
    lost = replace(small_set, shard=["shards/absent.tar"] * len(small_set))
    reader = MemberReader(lost, ReadingConfig())
    told = r"member \S+ of .*shards/absent\.tar: cannot read .*absent\.tar: it does not exist"
    with pytest.raises(LonghaulError, match=told):
        reader.take([1])
    reader.close()
