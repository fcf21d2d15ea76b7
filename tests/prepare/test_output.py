"""The output folder: nothing is replaced unasked, nothing foreign is touched, no half is left."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LonghaulError
from pipeline.manifest import open_dataset
from pipeline.prepare import PrepareOptions, prepare
from pipeline.prepare.output import _files_of_ours
from tests.prepare.oracle import read_back, run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.txt"
    path.write_text("".join(f"{n % 50} {n % 7}\n" for n in range(2000)))
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_an_existing_data_set_is_refused(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(log, out)
    before = {name: (out / name).read_bytes() for name in files(out)}
    with pytest.raises(LonghaulError) as error:
        run(log, out, min_user_events=3)
    assert str(error.value) == (
        f"output {out} already holds a data set; choose another folder, "
        "or replace it with overwrite"
    )
    assert {name: (out / name).read_bytes() for name in files(out)} == before


def test_overwrite_replaces_all_of_it(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(log, out, shard_bytes=500)
    assert len(files(out / "shards")) > 3
    (out / "notes.md").write_text("mine")
    dataset = run(log, out, overwrite=True)
    assert files(out) == [
        "card.json",
        "index.parquet",
        "items.parquet",
        "manifest.json",
        "notes.md",
        "shards/00000.tar",
        "users/00000.parquet",
    ]
    assert dataset.manifest.events == 2000
    assert "overwrite" not in dataset.manifest.lineage.options


def test_bad_input_leaves_the_old_data_set(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fingerprint = run(log, out).fingerprint
    (tmp_path / "bad.txt").write_text("1 2\n1\n")
    with pytest.raises(LonghaulError, match="line 2 has 1 column"):
        run(tmp_path / "bad.txt", out, overwrite=True)
    assert open_dataset(str(out)).fingerprint == fingerprint


def test_what_a_killed_run_left_is_cleaned(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    expected = run(log, tmp_path / "other").fingerprint
    run(log, out, shard_bytes=500)
    (out / "manifest.json").unlink()
    (out / "shards" / ".00099.tar.0123abcd.partial").write_bytes(b"half")
    dataset = run(log, out)
    assert dataset.fingerprint == expected
    assert files(out / "shards") == ["00000.tar"]


@pytest.mark.parametrize(
    "present", ["users.parquet", "thesis.tex", "shards/00000.tar", "shards/train.tar"]
)
def test_foreign_files_are_never_touched(present: str, log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / present).parent.mkdir(parents=True)
    (out / present).write_text("years of work " * 100)
    with pytest.raises(LonghaulError) as error:
        run(log, out, overwrite=True)
    assert str(error.value) == (
        f"output {out} is not empty (it holds {present}) and is no data set; choose another folder"
    )
    assert (out / present).read_text() == "years of work " * 100


def test_the_output_may_not_be_a_file(log: Path, tmp_path: Path) -> None:
    with pytest.raises(LonghaulError, match=r"log\.txt is a file; name a folder"):
        run(log, log)


def test_an_input_is_not_overwritten(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(log, out)
    with pytest.raises(LonghaulError) as error:
        run(out / "items.parquet", out, user="key", item="item", overwrite=True)
    assert str(error.value) == (
        f"input {out}/items.parquet lies in the output and would be replaced; move it"
    )


class Stop:
    """Progress that raises once a stage has come far enough."""

    def __init__(self, stage: str, done: int, error: BaseException) -> None:
        self.stage, self.done, self.error = stage, done, error

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage == self.stage and done >= self.done:
            raise self.error


@pytest.mark.parametrize("stage", ["read", "sort", "write"])
@pytest.mark.parametrize("done", [0, 800, 2000])
def test_what_stops_is_no_data_set_and_goes_on(
    stage: str, done: int, log: Path, tmp_path: Path
) -> None:
    options = PrepareOptions(
        inputs=[str(log)], output=f"{tmp_path}/out", shard_bytes=500, min_item_events=2
    )
    with pytest.raises(KeyboardInterrupt):
        prepare(options, Stop(stage, done, KeyboardInterrupt()))
    with pytest.raises(LonghaulError, match="no data set"):
        open_dataset(f"{tmp_path}/out")
    prepare(options)
    whole = options.model_copy(update={"output": f"{tmp_path}/whole"})
    prepare(whole)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


@pytest.mark.parametrize("stage", ["read", "sort"])
def test_the_old_data_set_outlives_a_stop_before_writing(
    stage: str, log: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fingerprint = run(log, out).fingerprint
    options = PrepareOptions(inputs=[str(log)], output=str(out), overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        prepare(options, Stop(stage, 0, KeyboardInterrupt()))
    assert open_dataset(str(out)).fingerprint == fingerprint


def limited(options: dict[str, Any], most_bytes: int) -> subprocess.CompletedProcess[str]:
    """prepare in a process whose files may not outgrow ``most_bytes``: a disk that is full."""
    script = (
        "import json, resource, sys\n"
        "from pipeline.errors import LonghaulError\n"
        "from pipeline.prepare import PrepareOptions, prepare\n"
        "options = PrepareOptions(**json.loads(sys.argv[1]))\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes}, {most_bytes}))\n"
        "try:\n"
        "    prepare(options)\n"
        "except LonghaulError as error:\n"
        "    sys.exit(f'error: {error}')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script, json.dumps(options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_is_one_line_and_the_rest_goes_on(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = limited({"inputs": [str(log)], "output": str(out)}, 20_000)
    assert result.returncode == 1
    assert result.stderr == (
        f"error: cannot write {out}/shards/00000.tar: OSError: [Errno 27] File too large; "
        f"what is done is kept in {out}/.work, and the same command goes on with it\n"
    )
    with pytest.raises(LonghaulError, match="no data set"):
        open_dataset(str(out))
    assert limited({"inputs": [str(log)], "output": str(out)}, 10_000_000).returncode == 0
    assert not (out / ".work").exists()


def test_a_disk_that_is_full_at_once_keeps_nothing(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = limited({"inputs": [str(log)], "output": str(out)}, 2_000)
    assert result.stderr == (
        f"error: cannot write {out}/.work/spill/00000-of-00001/00000.arrows: "
        "OSError: [Errno 27] File too large\n"
    )
    assert not out.exists()


def test_progress_tells_every_stage_to_its_end(log: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    prepare(
        PrepareOptions(inputs=[str(log)], output=f"{tmp_path}/out"),
        lambda stage, done, total: told.append((stage, done, total)),
    )
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages == ["read", "sort", "number", "write"]
    size = log.stat().st_size
    assert [(done, total) for stage, done, total in told if stage == "read"][-1] == (size, size)
    assert [(done, total) for stage, done, total in told if stage == "write"][-1] == (2000, 2000)
    for name in stages:
        done = [count for stage, count, _ in told if stage == name]
        assert done == sorted(done)


def test_lineage(log: Path, tmp_path: Path) -> None:
    dataset = run(log, tmp_path / "out", min_user_events=2)
    lineage = dataset.manifest.lineage
    (file,) = lineage.inputs
    assert file.path == str(log)
    assert file.sha256 == hashlib.sha256(log.read_bytes()).hexdigest()
    assert lineage.options["min_user_events"] == 2
    assert str(tmp_path / "out") not in json.dumps(lineage.options)
    assert lineage.version.count(".") == 2
    assert read_back(dataset)[0].items[0] == 0


def test_the_manifest_goes_first_and_the_shards_last(log: Path, tmp_path: Path) -> None:
    """However a removal is interrupted, what is left is no data set but still known as ours."""
    out = tmp_path / "out"
    run(log, out, shard_bytes=4000)
    assert _files_of_ours(str(out)) == [
        "manifest.json",
        "card.json",
        "index.parquet",
        "items.parquet",
        "users/00000.parquet",
        "users/00001.parquet",
        "shards/00000.tar",
        "shards/00001.tar",
    ]
