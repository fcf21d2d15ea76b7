"""Checkpoints: what is damaged or half there is never taken for whole."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from pipeline import tensor_files, world
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.train import checkpoint, loop
from pipeline.train.run import read_state, write_state
from pipeline.train.trained import load_trained
from tests.train.runs import (
    assert_bit_equal,
    checkpoint_of,
    environment,
    final_tensors,
    recipe,
    steps_in,
    train_apart,
    train_here,
    write,
)


def files_of(run: str, step: int) -> list[Path]:
    return sorted(Path(checkpoint_of(run, step).url).iterdir())


def tensor_file(run: str, step: int) -> Path:
    return next(path for path in files_of(run, step) if path.suffix == ".safetensors")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_a_damaged_newest_checkpoint_falls_back_and_ends_bit_equal(
    small_set: Dataset, tmp_path: Path, harm: object, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = recipe(small_set, tmp_path, "whole")
    harmed = recipe(small_set, tmp_path, "harmed")
    train_here(whole)
    train_here(harmed, stop_before=10)
    victim = tensor_file(harmed.run_url, 10)
    harm(victim)  # type: ignore[operator]
    assert train_here(harmed).state == "done"
    assert_bit_equal(final_tensors(whole), final_tensors(harmed))
    warned = capsys.readouterr().err
    assert "checkpoint of step 10 is passed over" in warned
    assert str(victim) in warned


def test_files_without_a_commit_are_no_checkpoint(small_set: Dataset, tmp_path: Path) -> None:
    """A crash between the upload of the files and the commit."""
    wanted = recipe(small_set, tmp_path)
    train_here(wanted, stop_before=10)
    Path(checkpoint_of(wanted.run_url, 10).url, checkpoint.COMMIT).unlink()
    assert steps_in(wanted.run_url) == [8]
    assert load_trained(wanted.run_url, warn=pytest.fail, newest=True).step == 8
    train_here(wanted)
    # What the crash left was replaced or removed.
    assert {path.name for path in Path(wanted.run_url, "checkpoints").iterdir()} == {
        "step-00000008-attempt-1",
        "step-00000012-attempt-2",
    }


def test_what_was_passed_over_does_not_push_out_what_is_whole(
    small_set: Dataset, tmp_path: Path
) -> None:
    wanted = recipe(small_set, tmp_path)
    train_here(wanted, stop_before=10)
    flip(tensor_file(wanted.run_url, 10))
    fewer = recipe(small_set, tmp_path, train__keep_checkpoints=1, train__checkpoint_every=1)
    train_here(fewer, stop_before=9)
    assert steps_in(wanted.run_url) == [9]
    assert checkpoint_of(wanted.run_url, 9).weights()


def test_an_attempt_that_was_replaced_commits_nothing(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path)
    train_here(wanted, stop_before=5)
    stands = read_state(wanted.run_url)
    assert stands is not None

    def overtaken(*_: object) -> None:
        """Another attempt has begun on a node that this one cannot see."""
        write_state(wanted.run_url, stands.model_copy(update={"attempt": 9}))

    with world.alone("cpu", 1) as here:
        training = loop.Training(wanted, here, 2, None)
        overtaken()
        training._save()
        with pytest.raises(LonghaulError, match=r"attempt 9 at .* has taken over from attempt 2"):
            training.saver.finish()
        training.close()
    assert [place.attempt for place in checkpoint.places_in(wanted.run_url)] == [1, 1]


def test_no_readable_checkpoint_is_an_error_not_a_fresh_start(
    small_set: Dataset, tmp_path: Path
) -> None:
    wanted = recipe(small_set, tmp_path)
    train_here(wanted, stop_before=6)
    for step in steps_in(wanted.run_url):
        flip(tensor_file(wanted.run_url, step))
    with pytest.raises(LonghaulError, match=r"none of the 2 checkpoints in .* can be read"):
        train_here(wanted)


def test_the_best_and_the_newest_are_kept(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(
        small_set,
        tmp_path,
        train__steps=24,
        train__validation={"every": 4, "metric": "ndcg@10"},
        train__keep_checkpoints=1,
        # So high a rate unlearns: the best validation is not the last one.
        train__optimizer={"lr": 0.3, "clip_norm": None},
    )
    train_here(wanted)
    best = checkpoint_of(wanted.run_url, 24).state.best
    assert best is not None
    assert best.step < 24
    assert steps_in(wanted.run_url) == [best.step, 24]
    kept = checkpoint_of(wanted.run_url, best.step)
    assert kept.state.validation is not None
    assert kept.state.validation["ndcg@10"] == best.value
    trained = load_trained(wanted.run_url, torch.device("cpu"), warn=pytest.fail)
    assert trained.step == best.step
    assert torch.equal(
        trained.model.item_embedding.weight, kept.tensor("weight/item_embedding.weight")
    )


def test_patience_ends_a_run(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(
        small_set,
        tmp_path,
        train__steps=400,
        train__validation={"every": 2, "metric": "hr@10", "patience": 3},
        train__optimizer={"lr": 0.3, "clip_norm": None},
    )
    ended = train_here(wanted)
    assert ended.state == "done"
    assert ended.step < 400
    assert ended.reason == "no better validation"
    again = train_here(wanted)
    assert (again.state, again.step) == ("done", ended.step)


def test_the_writing_is_dealt_over_the_ranks(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, train__engine="deepspeed", train__zero_stage=2)
    assert train_apart(wanted, tmp_path, workers=2).returncode == 0
    names = [path.name for path in files_of(wanted.run_url, 12)]
    assert names == [
        "0-of-2.000.safetensors",
        "1-of-2.000.safetensors",
        "checkpoint.json",
    ]
    sizes = [path.stat().st_size for path in files_of(wanted.run_url, 12)[:2]]
    assert max(sizes) < 2 * min(sizes)


def test_a_tensor_may_lie_in_many_files(
    small_set: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = recipe(small_set, tmp_path, "whole")
    parted = recipe(small_set, tmp_path, "parted")
    train_here(whole)
    monkeypatch.setattr(tensor_files, "FILE_BYTES", 400)
    train_here(parted, stop_before=10)
    files = checkpoint_of(parted.run_url, 10).commit.files
    of = Counter(piece.tensor for file in files for piece in file.pieces)
    assert max(of.values()) > 2
    assert max(sum(4 * (p.end - p.begin) for p in file.pieces) for file in files) == 400
    train_here(parted)
    assert_bit_equal(final_tensors(whole), final_tensors(parted))


def test_an_unknown_schema_is_refused(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, train__steps=4)
    train_here(wanted)
    commit = Path(checkpoint_of(wanted.run_url, 4).url, checkpoint.COMMIT)
    commit.write_text(json.dumps({**json.loads(commit.read_text()), "schema_version": 9}))
    with pytest.raises(LonghaulError, match="schema_version"):
        checkpoint_of(wanted.run_url, 4)


def test_a_full_disk_is_one_line_and_leaves_no_checkpoint(
    small_set: Dataset, tmp_path: Path
) -> None:
    """The file size limit of the process stands in for the disk: writes fail in the middle."""
    wanted = recipe(small_set, tmp_path, model__d=64)
    script = (
        "import resource, sys; from pipeline.process import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "sys.argv = ['longhaul', 'train', sys.argv[1]]; main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(write(wanted, tmp_path))],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "cannot write" in errors[0]
    assert "File too large" in errors[0]
    assert "Traceback" not in ended.stderr
    assert steps_in(wanted.run_url) == []
    assert not list(Path(wanted.run_url).rglob("*.partial"))
    # With room again the run goes on, here from the start.
    assert train_here(wanted).state == "done"
