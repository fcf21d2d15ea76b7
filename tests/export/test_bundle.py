"""The bundle: from any run, loaded with little, the same to the last bit, refused where damaged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from models.base import State
from pipeline import tensor_files, transient, world
from pipeline.errors import DamagedError, LonghaulError
from pipeline.evaluate import Protocol
from pipeline.evaluate.of_run import evaluate_run
from pipeline.export import write
from pipeline.export.bundle import Bundle, read_bundle
from pipeline.export.step import export_step
from pipeline.export.write import export_run
from pipeline.manifest import Dataset
from pipeline.recommend import Request
from pipeline.recommend import recommend as recommend_all
from pipeline.serve.recommender import Recommender
from pipeline.serve_commands import recommend_with_states
from pipeline.train.trained import load_trained
from tests.models.test_models import CAUSAL, fresh
from tests.train.runs import environment, longhaul, recipe, train_apart, train_here

# What serves a bundle must do without all of these.
FORBIDDEN = [
    *("ray", "deepspeed", "webdataset", "wandb", "pyarrow", "polars", "matplotlib"),
    *("typer", "rich", "s3fs", "psutil", "yaml", "filelock"),
]

LOADS = """
import sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ImportError(name + " is forbidden")

sys.meta_path.insert(0, Forbid())
import longhaul

recommender = longhaul.Recommender.load({url!r})
recommender.start({{7: [3, 4, 5]}})
recommender.update(7, 6)
print(recommender.top_k(7, 5))
"""


def trained(dataset: Dataset, folder: Path, name: str = "run", **changes: Any) -> str:
    wanted = recipe(dataset, folder, name, **changes)
    train_here(wanted)
    return wanted.run_url


@pytest.fixture(scope="module")
def run(small_set: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    return trained(small_set, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def bundle(run: str) -> Bundle:
    return export_run(run, f"{run}-bundle")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports that leave their step empty: torch takes seconds for one."""
    monkeypatch.setattr(write, "export_step", lambda model: b"")


def test_a_bundle_is_the_run(run: str, bundle: Bundle) -> None:
    wanted = load_trained(run)
    weights = dict(bundle.weights())
    assert weights.keys() == dict(wanted.model.named_parameters()).keys()
    for name, parameter in wanted.model.named_parameters():
        assert torch.equal(weights[name], parameter.detach())
    assert (bundle.config.step, bundle.config.data) == (wanted.step, wanted.fingerprint)
    assert bundle.config.recipe == json.loads(json.dumps(wanted.recipe.identity()))
    from_run, from_bundle = Recommender.load(run), Recommender.load(bundle.url)
    assert from_run.served.hash == from_bundle.served.hash == bundle.config.model_hash
    for recommender in (from_run, from_bundle):
        recommender.start({1: [3, 4, 5, 5], 2: []})
    assert from_run.top_k([1, 2]) == from_bundle.top_k([1, 2])
    bundle.check()


def test_a_bundle_loads_without_what_trained_it(bundle: Bundle) -> None:
    said = subprocess.run(
        [sys.executable, "-c", LOADS.format(forbidden=FORBIDDEN, url=bundle.url)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert said.returncode == 0, said.stderr
    recommender = Recommender.load(bundle.url)
    recommender.start({7: [3, 4, 5, 6]})
    found = [item for item, _ in recommender.top_k(7, 5)]
    assert [item for item, _ in eval(said.stdout)] == found


def test_importing_longhaul_imports_little() -> None:
    code = (
        f"import longhaul, sys; print([n for n in {FORBIDDEN!r} + ['torch'] if n in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert said.stdout.strip() == "[]", said.stderr


def test_all_names_of_longhaul_exist() -> None:
    import longhaul

    assert len(dir(longhaul)) > 20
    for name in dir(longhaul):
        assert getattr(longhaul, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'recommender'"):
        longhaul.recommender  # noqa: B018


def test_damage_is_refused_by_name(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transient, "_READS", 1)
    shutil.copytree(bundle.url, tmp_path / "bundle")
    bundle = read_bundle(str(tmp_path / "bundle"))
    for name in bundle.files:
        file = tmp_path / "bundle" / name
        whole = file.read_bytes()
        for damaged in (whole[:-1], bytes([whole[0] ^ 4]) + whole[1:]):
            file.write_bytes(damaged)
            with pytest.raises(DamagedError, match=f"bundle/{name} is (cut|damaged)"):
                read_bundle(bundle.url).check()
            if name.endswith("safetensors") and "state" not in name:
                with pytest.raises(DamagedError, match=name):
                    Recommender.load(bundle.url)
        file.write_bytes(whole)
    read_bundle(bundle.url).check()
    (tmp_path / "bundle" / "bundle.json").unlink()
    with pytest.raises(LonghaulError, match=r"bundle\.json is missing"):
        read_bundle(bundle.url)


@pytest.mark.parametrize(
    "form", ["lrurec", *(pytest.param(f, marks=pytest.mark.slow) for f in CAUSAL if f != "lrurec")]
)
def test_the_exported_step_is_the_step(form: str, tmp_path: Path) -> None:
    model = fresh(form, torch.float32)
    (tmp_path / "step.pt2").write_bytes(export_step(model))
    step = torch.export.load(tmp_path / "step.pt2").module()
    for users in (1, 2, 7):
        state: State = model.init_state(users)
        other = dict(state)
        with torch.no_grad():
            for items in torch.randint(1, 31, (4, users)):
                hidden, state = model.step(items, state)
                found, other = step(items, other)
                torch.testing.assert_close(found, hidden, rtol=1e-4, atol=1e-5)


def test_the_step_runs_with_torch_alone(bundle: Bundle) -> None:
    """As the model card says it."""
    code = f"""
import glob, os, sys
os.chdir({bundle.url!r})
import torch
from safetensors.torch import load_file
step = torch.export.load("step.pt2").module()
state = load_file("first_state.safetensors")
for item in (3, 4, 5):
    hidden, state = step(torch.tensor([item]), state)
files = glob.glob("weights-*.safetensors")
weights = {{name: w.float() for file in files for name, w in load_file(file).items()}}
scores = hidden @ weights["{bundle.config.table}"].T + weights["{bundle.config.bias}"]
keys = load_file("items.safetensors")["keys"]
print(keys[scores[0, 1:].topk(4).indices].tolist(), "models" in sys.modules)
"""
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, cwd="/"
    )
    recommender = Recommender.load(bundle.url)
    keys = recommender.served.keys.keys(torch.tensor([3, 4, 5]).numpy())
    recommender.start({1: keys})
    wanted = [item for item, _ in recommender.top_k(1, 4, seen="none")]
    assert said.stdout.strip() == f"{wanted} False", said.stderr


def test_a_model_that_looks_both_ways_says_why_it_has_no_step(
    small_set: Dataset, tmp_path: Path
) -> None:
    url = trained(
        small_set,
        tmp_path,
        model={"name": "bert4rec", "d": 8},
        train__objective={"name": "cloze", "mask_probability": 0.3},
        train__steps=2,
        data__window={"length": 16, "bos": True},
        serving={"past_max_history": "re-encode"},
    )
    bundle = export_run(url, str(tmp_path / "bundle"))
    assert bundle.config.step_function is None
    assert "looks both ways" in str(bundle.config.no_step_function)
    assert "step.pt2" not in bundle.files
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "There is no `step.pt2`" in card
    recommender = Recommender.load(bundle.url)
    recommender.start({1: [3] * 40})
    recommender.update(1, 4)
    assert len(recommender.top_k(1, 5)) == 5


def test_bf16_is_half_as_large_and_rounded(run: str, tmp_path: Path, quick: None) -> None:
    small = export_run(run, str(tmp_path / "small"), dtype="bf16")
    whole = export_run(run, str(tmp_path / "whole"))
    name = "weights-000.safetensors"
    assert small.files[name].bytes < 0.7 * whole.files[name].bytes
    rounded = dict(small.weights())
    for key, weight in whole.weights():
        assert torch.equal(rounded[key], weight.bfloat16().float())
    assert small.config.model_hash != whole.config.model_hash
    assert Recommender.load(small.url).served.hash == small.config.model_hash


def test_weights_may_be_in_many_files(
    run: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "FILE_BYTES", 1000)
    bundle = export_run(run, str(tmp_path / "bundle"))
    assert len([name for name in bundle.files if name.startswith("weights-")]) > 3
    wanted = load_trained(run).model.state_dict()
    found = bundle.model().state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_of_two_ranks_and_any_stage(small_set: Dataset, tmp_path: Path, stage: int) -> None:
    wanted = recipe(
        small_set,
        tmp_path,
        model={"name": "sasrec", "d": 8, "max_history": 16},
        train__engine="deepspeed",
        train__zero_stage=stage,
        train__steps=4,
        placement={"launcher": "torchrun", "threads": 1},
    )
    said = train_apart(wanted, tmp_path, workers=2)
    assert said.returncode == 0, said.stderr
    bundle = export_run(wanted.run_url, str(tmp_path / "bundle"))
    model = load_trained(wanted.run_url).model.state_dict()
    assert all(torch.equal(w, model[name]) for name, w in bundle.weights())
    Recommender.load(bundle.url).start({1: [3, 4]})


def test_metrics_of_this_checkpoint_are_in_it(small_set: Dataset, run: str, tmp_path: Path) -> None:
    with world.alone("cpu", 1) as here:
        protocol = Protocol(max_history=16, ks=(10,))
        (found,) = evaluate_run(load_trained(run), small_set, protocol, here)
    bundle = export_run(run, str(tmp_path / "bundle"))
    (kept,) = json.loads(bundle.read("metrics.json"))
    assert kept == found.model_dump(mode="json")
    assert f"{found.result.metrics['ndcg@10']:.4f}" in bundle.read("README.md").decode()


def test_nothing_is_written_over_and_nothing_left_behind(
    run: str, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    export_run(run, str(folder))
    with pytest.raises(LonghaulError, match="already holds a bundle"):
        export_run(run, str(folder))
    (folder / "bundle.json").unlink()  # as a kill leaves it
    export_run(run, str(folder)).check()
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine").write_text("")
    with pytest.raises(LonghaulError, match="holds mine"):
        export_run(run, str(other))

    def fails(model: object) -> bytes:
        raise RuntimeError("no room")

    monkeypatch.setattr(write, "export_step", fails)
    with pytest.raises(RuntimeError, match="no room"):
        export_run(run, str(tmp_path / "third"))
    assert not (tmp_path / "third").exists()


def test_the_data_set_must_still_be_there(
    small_set: Dataset, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        url, fingerprint = "elsewhere", "other"

    monkeypatch.setattr("pipeline.serve.of_run.open_dataset", lambda url: Other())
    with pytest.raises(LonghaulError, match="was trained on other data than elsewhere"):
        export_run(run, str(tmp_path / "bundle"))


def test_export_in_a_bucket(run: str, bucket: str, quick: None) -> None:
    bundle = export_run(run, f"{bucket}/bundle")
    bundle.check()
    recommender = Recommender.load(f"{bucket}/bundle")
    recommender.start({1: [3]})
    recommender.save(f"{bucket}/states")
    again = Recommender.load(f"{bucket}/bundle")
    again.restore(f"{bucket}/states")
    assert again.top_k(1) == recommender.top_k(1)


def recommend(url: str, output: Path, **given: Any) -> None:
    """``longhaul recommend`` without its process."""
    options: dict[str, Any] = dict.fromkeys(["data", "save_state", "events", "state"])
    options |= {"k": 5, "seen": False, "columns": "user,item,timestamp"}
    options |= {"skip_unknown_items": False, "as_json": True}
    recommend_with_states(url, str(output), **{**options, **given})


def lists_in(file: Path) -> dict[Any, list[Any]]:
    return {row["user"]: row["items"] for row in pq.read_table(file).to_pylist()}


def test_lists_from_a_bundle_and_from_states_of_it(
    small_set: Dataset, run: str, bundle: Bundle, tmp_path: Path
) -> None:
    request = Request(small_set, str(tmp_path / "batch"), k=5, max_history=16)
    recommend_all(request, bundle.served().scorer())
    recommend(bundle.url, tmp_path / "states", data=small_set.url, save_state=str(tmp_path / "s"))
    batch, kept = lists_in(tmp_path / "batch" / "part-00000.parquet"), lists_in(tmp_path / "states")
    assert len(batch) == 300
    recommender = Recommender.load(bundle.url)
    recommender.restore(str(tmp_path / "s"))
    # Lists of a batch are made from the newest 16 events, states from all.
    short = [user for user in batch if len(recommender.history(user)) <= 16]
    assert len(short) > 200
    assert [batch[user] for user in short] == [kept[user] for user in short]


def test_the_commands(small_set: Dataset, run: str, bundle: Bundle, tmp_path: Path) -> None:
    options = ["--save-state", "s1", "--json", "--k", "5"]
    said = longhaul("recommend", run, "--output", "a.parquet", *options, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    told = json.loads(said.stdout)
    assert (told["users"], told["bytes_per_user"]) == (300, 2 * 4 * 8 * 4 + 4 * 8)
    kept = lists_in(tmp_path / "a.parquet")
    events = pa.table({"user": [4, 1000], "item": [kept[4][0], 7], "timestamp": [2, 1]})
    pq.write_table(events, tmp_path / "e.parquet")
    # States of a run suit the bundle it became.
    added = ["--events", "e.parquet", "--state", "s1", "--save-state", "s2"]
    said = longhaul("recommend", bundle.url, "--output", "b.parquet", *added, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "2 events of 2 users" in said.stdout
    rows = lists_in(tmp_path / "b.parquet")
    assert rows.keys() == {4, 1000}
    assert kept[4][0] not in rows[4]
    recommender = Recommender.load(bundle.url)
    recommender.restore(str(tmp_path / "s2"))
    assert len(recommender) == 301
    assert [item for item, _ in recommender.top_k(4, 10)] == rows[4]


def test_options_that_do_not_go_together(bundle: Bundle, tmp_path: Path) -> None:
    for match, options in {
        "give both or neither": {"events": "e.parquet"},
        "not from --data": {"events": "e.parquet", "state": "s", "data": "d"},
        "name the histories with --data": {"save_state": "s"},
        "USER,ITEM or USER,ITEM,TIME": {"events": "e", "state": "s", "columns": "user"},
    }.items():
        with pytest.raises(LonghaulError, match=match):
            recommend(bundle.url, tmp_path / "out", **options)


def test_the_command_exports(small_set: Dataset, run: str, tmp_path: Path) -> None:
    said = longhaul("export", run, "--output", "bundle", "--bf16", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "weights-000.safetensors" in said.stdout
    assert read_bundle(str(tmp_path / "bundle")).config.dtype == "bf16"
    few = ["--output", "few.parquet", "--data", small_set.url, "--user", "4"]
    said = longhaul("recommend", "bundle", *few, cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert lists_in(tmp_path / "few.parquet").keys() == {4}
