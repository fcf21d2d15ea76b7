"""No credential is in anything that a run leaves, and nothing that it leaves can run code."""

import ast
import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.config import load_recipe
from pipeline.errors import LonghaulError
from pipeline.manifest import Dataset
from pipeline.secrets import FILES
from pipeline.train.run import load_config
from pipeline.train.trained import load_trained
from tests.train.runs import ROOT, longhaul, recipe, train_here, write

PLANTED = "planted-value-of-a-credential"


def said_of(folder: Path, *arguments: str) -> str:
    """All that the command says, with credentials in its environment."""
    found = {FILES: json.dumps({"MY_API_TOKEN": str(folder / "secret")})}
    found |= dict.fromkeys(("WANDB_API_KEY", "HF_TOKEN", "LONGHAUL_PASSWORD"), PLANTED)
    ended = longhaul(*arguments, cwd=folder, **found)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def test_no_credential_is_in_what_a_run_leaves(
    small_set: Dataset, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(PLANTED)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED)  # the test's server takes any
    wanted = recipe(small_set, f"{bucket}/runs", "wary", tracking={"wandb": "offline"})
    file = str(write(wanted, tmp_path))
    run = wanted.run_url
    said = said_of(tmp_path, "train", file)
    said += said_of(tmp_path, "evaluate", run, "--baselines")
    said += said_of(tmp_path, "report", run, "--output", f"{run}/page")
    said += said_of(tmp_path, "status", run, "--json")
    assert PLANTED not in said
    names = storage.files_below(run)
    kinds = {Path(name).suffix for name in names}
    assert kinds >= {".yaml", ".json", ".jsonl", ".safetensors", ".wandb", ".html", ".log"}
    for name in names:
        assert PLANTED.encode() not in storage.read_bytes(f"{run}/{name}"), name
    attempt = storage.read_json(f"{run}/attempts/attempt-1.json")
    assert "LONGHAUL_PASSWORD" not in attempt["environment"]


def test_passwords_in_urls_are_refused(small_set: Dataset, tmp_path: Path) -> None:
    file = write(recipe(small_set, tmp_path), tmp_path)
    with pytest.raises(LonghaulError, match="holds a password") as refused:
        storage.read_bytes(load_recipe(str(file), ["runs=s3://me:hidden@bucket/runs"]).run_url)
    assert "hidden" not in str(refused.value)


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._canary}",)


def test_a_pickle_in_place_of_tensors_is_not_loaded(small_set: Dataset, tmp_path: Path) -> None:
    wanted = recipe(small_set, tmp_path, train__keep_checkpoints=1)
    train_here(wanted)
    canary = tmp_path / "canary"
    payload = pickle.dumps(Payload(canary))
    pickle.loads(payload)
    assert canary.exists(), "the payload would do no harm"
    canary.unlink()
    (commit,) = Path(wanted.run_url).glob("checkpoints/*/checkpoint.json")
    document = json.loads(commit.read_text())
    for held in document["files"]:
        path = commit.parent / held["path"]
        padded = payload.ljust(path.stat().st_size, b"\0")
        path.write_bytes(padded)
        held["sha256"] = [hashlib.sha256(padded).hexdigest()]  # one who can write here can do this
    commit.write_text(json.dumps(document))
    load_trained(wanted.run_url, warn=str)  # as numbers, which is all that bytes can be
    assert not canary.exists()


def test_yaml_makes_no_objects(small_set: Dataset, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "config.yaml").write_text(f"!!python/object/apply:os.system ['touch {canary}']")
    with pytest.raises(LonghaulError, match="not valid YAML"):
        load_config(str(tmp_path))
    assert not canary.exists()


@pytest.mark.parametrize("package", ["pipeline", "models", "cluster"])
def test_no_code_unpickles_or_evaluates(package: str) -> None:
    forbidden = {"eval", "exec", "compile", "__import__"}
    loaders = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load")}
    modules = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not modules & {alias.name for alias in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in modules, path
            elif isinstance(node, ast.Call):
                called = node.func
                if isinstance(called, ast.Name):
                    assert called.id not in forbidden, path
                elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                    assert (called.value.id, called.attr) not in loaders, path
                allowed = [word.value for word in node.keywords if word.arg == "allow_pickle"]
                assert not allowed, path
