"""The run's folder: its recipe, its state, its attempts.

RUN/config.yaml   state.json   checkpoints/   metrics/attempt-N.jsonl   eval/
"""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from pipeline import storage
from pipeline.config import Recipe, parse_recipe
from pipeline.errors import LonghaulError

State = Literal["running", "preempted", "failed", "done"]


class RunState(BaseModel):
    """What a launcher reads to learn how a run stands."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    schema_version: int = 1
    state: State
    attempt: int
    step: int
    steps: int
    reason: str | None = None  # why it failed or stopped


def open_run(recipe: Recipe) -> int:
    """Begin an attempt at the recipe's run, new or resumed; the number of the attempt.

    Raises LonghaulError, with the differences, where the name belongs to another recipe.
    """
    url = recipe.run_url
    config = storage.join(url, "config.yaml")
    if storage.exists(config):
        kept = load_config(url)
        if kept.hash() != recipe.hash():
            changes = "; ".join(_differences(kept.identity(), recipe.identity()))
            raise LonghaulError(
                f"run {recipe.name} at {url} was begun with another recipe ({changes}): "
                "choose another name, or restore the recipe"
            )
    storage.write_bytes(config, recipe.to_yaml().encode())
    attempts = [
        int(name.removeprefix("attempt-").removesuffix(".jsonl"))
        for name in storage.files_below(storage.join(url, "metrics"))
    ]
    return max(attempts, default=0) + 1


def load_config(run_url: str) -> Recipe:
    """The recipe that the run at ``run_url`` was begun with."""
    url = storage.join(storage.absolute(run_url), "config.yaml")
    if not storage.exists(url):
        raise LonghaulError(f"no run at {run_url}: config.yaml is missing")
    return parse_recipe(yaml.safe_load(storage.read_bytes(url)), url)


def metrics_url(run_url: str, attempt: int) -> str:
    """The metrics file of an attempt."""
    return storage.join(run_url, "metrics", f"attempt-{attempt}.jsonl")


def write_state(run_url: str, state: RunState) -> None:
    """Tell how the run stands."""
    storage.write_json(storage.join(run_url, "state.json"), state.model_dump())


def read_state(run_url: str) -> RunState | None:
    """How the run stands; None before its first attempt."""
    url = storage.join(run_url, "state.json")
    if not storage.exists(url):
        return None
    return RunState.model_validate(storage.read_json(url))


def versions() -> dict[str, str]:
    """What code computes: longhaul's version and commit, and the libraries that matter."""
    found = {"python": platform.python_version()}
    for package in ("longhaul", "torch", "deepspeed", "ray", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    found["commit"] = _commit()
    return found


def _commit() -> str:
    """The checkout's commit, marked where it has uncommitted changes; "unknown" outside git."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


def _differences(kept: Any, wanted: Any, path: str = "") -> list[str]:
    if isinstance(kept, dict) and isinstance(wanted, dict):
        found = []
        for key in sorted(kept.keys() | wanted.keys()):
            inner = f"{path}.{key}" if path else key
            found += _differences(kept.get(key), wanted.get(key), inner)
        return found
    return [] if kept == wanted else [f"{path}: {kept!r} before, {wanted!r} now"]
