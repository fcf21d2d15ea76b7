"""Files by URL: what a store that fails may and may not do to them."""

import hashlib
import os

import pytest

from pipeline import storage, transient
from pipeline.errors import LonghaulError
from tests.faulty_s3 import Fault, FaultyS3, Kind

CONTENT = os.urandom(3 << 20)


@pytest.mark.parametrize("kind", ["unavailable", "error", "reset", "truncate"])
@pytest.mark.parametrize("times", [1, 6])
def test_reads_outlast_what_passes(
    s3_server: FaultyS3, bucket: str, kind: Kind, times: int
) -> None:
    url = f"{bucket}/file"
    storage.write_bytes(url, CONTENT)
    fault = Fault(kind, times=times)
    s3_server.suffer(fault)
    assert storage.read_bytes(url, 1000, 2_000_000) == CONTENT[1000:2_000_000]
    assert fault.failed == times
    s3_server.suffer(Fault(kind, times=times))
    assert storage.read_bytes(url) == CONTENT


@pytest.mark.parametrize("kind", ["unavailable", "error", "reset", "truncate"])
def test_the_fast_client_reads_the_same_and_outlasts_as_much(
    s3_server: FaultyS3, bucket: str, kind: Kind
) -> None:
    read_range = pytest.importorskip("pipeline.fast_ranges").read_range
    pytest.importorskip("obstore")
    url = f"{bucket}/folder/file"
    storage.write_bytes(url, CONTENT)
    fault = Fault(kind, times=4)
    s3_server.suffer(fault)
    assert read_range(url, 1000, 2_000_000) == CONTENT[1000:2_000_000]
    assert fault.failed == 4
    with pytest.raises(LonghaulError, match="it does not exist"):
        read_range(f"{bucket}/absent", 0, 10)


@pytest.mark.parametrize("kind", ["unavailable", "error", "reset"])
def test_writes_and_looks_outlast_what_passes(s3_server: FaultyS3, bucket: str, kind: Kind) -> None:
    s3_server.suffer(Fault(kind, times=3))
    storage.write_bytes(f"{bucket}/folder/small", b"small")
    s3_server.suffer(Fault(kind, times=3))
    with storage.create(f"{bucket}/folder/large") as file:
        for start in range(0, len(CONTENT), 100_000):
            file.write(CONTENT[start : start + 100_000])
    s3_server.suffer(Fault(kind, times=3))
    assert storage.exists(f"{bucket}/folder")
    s3_server.suffer(Fault(kind, times=3))
    assert storage.files_below(bucket) == ["folder/large", "folder/small"]
    s3_server.suffer(Fault(kind, times=3))
    storage.remove(f"{bucket}/folder/small")
    assert storage.files_below(bucket) == ["folder/large"]
    assert storage.read_bytes(f"{bucket}/folder/large") == CONTENT


def test_what_arrives_damaged_is_read_again(s3_server: FaultyS3, bucket: str) -> None:
    """A whole object has a checksum at the store; members and chunks have hashes of ours."""
    storage.write_json(f"{bucket}/state.json", {"step": 3})
    fault = Fault("corrupt", times=4)
    s3_server.suffer(fault)
    assert storage.read_json(f"{bucket}/state.json") == {"step": 3}
    assert fault.failed == 4
    s3_server.suffer(Fault("corrupt", times=100))
    with pytest.raises(LonghaulError, match=r"state\.json is damaged: its checksum is not"):
        storage.read_json(f"{bucket}/state.json")


def test_a_large_write_goes_in_parts_that_outlast_what_passes(
    s3_server: FaultyS3, bucket: str
) -> None:
    content = os.urandom(1 << 20) * 120  # above s3fs's two parts of 50 MiB
    s3_server.suffer(Fault("unavailable", times=4))
    storage.write_bytes(f"{bucket}/large", content)
    read = storage.read_bytes(f"{bucket}/large")
    assert hashlib.sha256(read).digest() == hashlib.sha256(content).digest()


def test_what_does_not_pass_is_told_when_patience_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGHAUL_STORAGE_PATIENCE", "1")
    calls = 0

    def busy() -> None:
        nonlocal calls
        calls += 1
        raise TimeoutError("busy")

    with pytest.raises(TimeoutError):
        transient.outlast(busy, "read s3://bucket/file")
    assert calls > 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1  # not a line for every attempt
    assert told[0].startswith("warning: cannot read s3://bucket/file now, trying again for up to")


def test_a_store_that_stays_away_is_one_line(
    s3_server: FaultyS3, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGHAUL_STORAGE_PATIENCE", "1")
    s3_server.suffer(Fault("unavailable", seconds=60))
    with pytest.raises(LonghaulError, match=f"cannot read {bucket}/file: "):
        storage.read_bytes(f"{bucket}/file")


def test_what_will_not_pass_is_raised_at_once(s3_server: FaultyS3, bucket: str) -> None:
    calls = 0

    def absent() -> None:
        nonlocal calls
        calls += 1
        raise FileNotFoundError("nowhere")

    with pytest.raises(FileNotFoundError):
        transient.outlast(absent, "try")
    assert calls == 1
    with pytest.raises(LonghaulError, match="it does not exist"):
        storage.read_bytes(f"{bucket}/absent")


@pytest.mark.parametrize("where", ["bucket", "tmp_path"])
def test_a_write_that_raises_leaves_nothing(where: str, request: pytest.FixtureRequest) -> None:
    url = f"{request.getfixturevalue(where)}/folder"

    def fails_halfway() -> None:
        with storage.create(f"{url}/file") as file:
            file.write(CONTENT)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_halfway()
    assert storage.files_below(url) == []
