"""A bucket in the place of a folder, for input and output."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import LonghaulError
from pipeline.manifest import open_dataset
from pipeline.prepare import PrepareOptions, prepare
from tests.prepare.oracle import run
from tests.prepare.test_output import Stop


def put(url: str, content: bytes) -> None:
    storage.write_bytes(url, content)


def test_bucket_to_bucket_gives_the_bytes_of_a_folder(bucket: str, tmp_path: Path) -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"user": [n % 40 for n in range(4000)], "item": [n % 9 for n in range(4000)]})
    pq.write_table(table, sink, row_group_size=500)
    content = sink.getvalue().to_pybytes()
    text = b"".join(b"%d %d\n" % (n % 40, n % 11) for n in range(3000))
    for root in (f"{bucket}/logs", f"{tmp_path}/logs"):
        put(f"{root}/b.parquet", content)
        put(f"{root}/a.txt", text)
    there = run(f"{bucket}/logs", f"{bucket}/sets/one", shard_bytes=3000)
    here = run(tmp_path / "logs", tmp_path / "one", shard_bytes=3000)
    assert there.fingerprint == here.fingerprint
    names = storage.files_below(here.url)
    assert storage.files_below(there.url) == names
    for name in names:
        if name != "manifest.json":
            assert storage.read_bytes(f"{there.url}/{name}") == (Path(here.url) / name).read_bytes()
    paths = [file.path for file in there.manifest.lineage.inputs]
    assert paths == [f"{bucket}/logs/a.txt", f"{bucket}/logs/b.parquet"]
    local = [(file.bytes, file.sha256) for file in here.manifest.lineage.inputs]
    assert [(file.bytes, file.sha256) for file in there.manifest.lineage.inputs] == local
    members = [there.read(n).items.tolist() for n in range(len(there))]
    assert members == [here.read(n).items.tolist() for n in range(len(here))]


def test_globs_overwrite_and_remains(bucket: str) -> None:
    for name in ("b", "a"):
        put(f"{bucket}/{name}.txt", f"1 {name}\n".encode())
    out = f"{bucket}/out"
    run(f"{bucket}/*.txt", out)
    with pytest.raises(LonghaulError, match="already holds a data set"):
        run(f"{bucket}/*.txt", out)
    assert run(f"{bucket}/a.txt", out, overwrite=True).manifest.events == 1
    storage.remove(f"{out}/manifest.json")
    dataset = run(f"{bucket}/*.txt", out)
    assert [file.path for file in dataset.manifest.lineage.inputs] == [
        f"{bucket}/a.txt",
        f"{bucket}/b.txt",
    ]
    assert open_dataset(out).manifest == dataset.manifest


def test_bad_input_in_a_bucket(bucket: str) -> None:
    put(f"{bucket}/a.csv", b"user,item\n1,2\n1\n")
    with pytest.raises(LonghaulError) as error:
        run(f"{bucket}/a.csv", f"{bucket}/out")
    assert str(error.value).startswith(f"{bucket}/a.csv, line 3 has 1 column")
    assert storage.files_below(bucket) == ["a.csv"]


def test_missing_buckets(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(LonghaulError) as error:
        run("s3://no-such-bucket/a.csv", tmp_path / "out")
    assert str(error.value) == "input s3://no-such-bucket/a.csv does not exist"
    (tmp_path / "log.txt").write_text("1 2\n")
    with pytest.raises(LonghaulError) as error:
        run(tmp_path / "log.txt", "s3://no-such-bucket/out")
    assert str(error.value) == "cannot list s3://no-such-bucket/out: it does not exist"


def test_an_unreadable_bucket(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(LonghaulError) as error:
        run(f"{bucket}/a.csv", tmp_path / "out")
    assert str(error.value).startswith(f"cannot list {bucket}/a.csv: ")
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()


def test_what_stops_in_a_bucket_goes_on(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("".join(f"{n % 50} {n % 7}\n" for n in range(2000)))
    options = PrepareOptions(
        inputs=[f"{tmp_path}/log.txt"], output=f"{bucket}/out", shard_bytes=2000, workers=1
    )
    with pytest.raises(KeyboardInterrupt):
        prepare(options, Stop("write", 1500, KeyboardInterrupt()))
    assert not storage.exists(f"{bucket}/out/manifest.json")
    made = storage.filesystem(bucket)[0].info(f"{bucket}/out/shards/00000.tar")["LastModified"]
    assert prepare(options).events == 2000
    again = storage.filesystem(bucket)[0].info(f"{bucket}/out/shards/00000.tar")["LastModified"]
    assert made == again
