"""The run's folder: its recipe, its state, its attempts.

RUN/config.yaml   state.json   stop   attempts/attempt-N.json   metrics/attempt-N.jsonl
RUN/checkpoints/   eval/
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import threading
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from pipeline import storage
from pipeline.config import Recipe, parse_recipe, read_yaml
from pipeline.errors import LonghaulError
from pipeline.secrets import looks_secret

# Of the environment, what may change what is computed or how fast.
_RECORDED = (
    "CUDA_",
    "DS_",
    "GLOO_",
    "GOMP_",
    "LONGHAUL_",
    "NCCL_",
    "OMP_",
    "PYTORCH_",
    "RAY_",
    "SLURM_",
    "TORCH_",
)
_SECONDS_BETWEEN_LOOKS = 5.0
_ASKED = "asked to stop"

LAUNCHED = "LONGHAUL_LAUNCHED"  # set where a launcher starts the run, and starts it anew

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
            changes = "; ".join(differences(kept.identity(), recipe.identity()))
            raise LonghaulError(
                f"run {recipe.name} at {url} was begun with another recipe ({changes}): "
                "choose another name, or restore the recipe"
            )
    storage.write_bytes(config, recipe.to_yaml().encode())
    stands = read_state(url)
    return 1 if stands is None else stands.attempt + 1


def load_config(run_url: str) -> Recipe:
    """The recipe that the run at ``run_url`` was begun with."""
    url = storage.join(storage.absolute(run_url), "config.yaml")
    if not storage.exists(url):
        raise LonghaulError(f"no run at {run_url}: config.yaml is missing")
    return parse_recipe(read_yaml(url), url)


def record_attempt(
    recipe: Recipe, attempt: int, world_size: int, data: str, begun_with: dict[str, Any] | None
) -> None:
    """Keep what an attempt computes with, and on what; ``data`` is the fingerprint.

    begun_with: see ``Origin`` in the checkpoint; None where the run began with weights of its own.
    """
    document = {
        "recipe_hash": recipe.hash(),
        "data": data,
        "data_path": recipe.data.path,
        "begun_with": begun_with,
        "world_size": world_size,
        "versions": versions(),
        "host": platform.node(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_RECORDED) and not looks_secret(name)
        },
    }
    url = storage.join(recipe.run_url, "attempts", f"attempt-{attempt}.json")
    storage.write_json(url, document)


def request_stop(run_url: str, lasting: bool = False, reason: str = _ASKED) -> None:
    """Ask the run to save and leave, wherever it runs. Starting it again withdraws the request.

    lasting: what a launcher starts anew by itself is not begun either, until it is launched again.
    reason: what the run will then say.
    """
    document = {"stop": True, "lasting": lasting, "reason": reason}
    storage.write_json(_stop_url(run_url), document)


def stop_lasts(run_url: str) -> bool:
    """Whether somebody asked the run to stop for good."""
    url = _stop_url(run_url)
    return storage.exists(url) and bool(storage.read_json(url).get("lasting"))


def stop_requested(run_url: str) -> bool:
    """Whether somebody asked."""
    return storage.exists(_stop_url(run_url))


def stop_reason(run_url: str) -> str:
    """Why the run stops: what the request says, or only that a signal asked."""
    url = _stop_url(run_url)
    return str(storage.read_json(url).get("reason", _ASKED)) if storage.exists(url) else _ASKED


def withdraw_stop(run_url: str) -> None:
    """The run may go on."""
    storage.remove(_stop_url(run_url))


class StopFile:
    """Looks for a request to stop every few seconds, in a thread, so that no step waits for it."""

    def __init__(self, run_url: str, watched: bool) -> None:
        self._seen = threading.Event()
        self._closed = threading.Event()
        self._run_url = run_url
        if watched:
            threading.Thread(target=self._watch, name="stop-file", daemon=True).start()

    def _watch(self) -> None:
        while True:
            with contextlib.suppress(LonghaulError):  # a store that fails now may answer later
                if stop_requested(self._run_url):
                    self._seen.set()
                    return
            if self._closed.wait(_SECONDS_BETWEEN_LOOKS):
                return

    def seen(self) -> bool:
        """Whether somebody asked to stop."""
        return self._seen.is_set()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()


def _stop_url(run_url: str) -> str:
    return storage.join(storage.absolute(run_url), "stop")


def metrics_url(run_url: str, attempt: int) -> str:
    """The metrics file of an attempt."""
    return storage.join(run_url, "metrics", f"attempt-{attempt}.jsonl")


def metrics_files(run_url: str) -> list[str]:
    """The metrics files there are, in the order of the attempts."""
    folder = storage.join(run_url, "metrics")
    # Not what a killed writer left half-written.
    names = [name for name in storage.files_below(folder) if name.startswith("attempt-")]
    names.sort(key=lambda name: int(name.removeprefix("attempt-").removesuffix(".jsonl")))
    return [storage.join(folder, name) for name in names]


def read_metrics(url: str) -> list[dict[str, Any]]:
    """The lines of one metrics file."""
    return [json.loads(line) for line in storage.read_bytes(url).splitlines()]


def metrics_of(run_url: str) -> list[dict[str, Any]]:
    """The metrics of all attempts; what a later attempt trained again overrules."""
    kept: list[dict[str, Any]] = []
    for file in metrics_files(run_url):
        attempt = read_metrics(file)
        if attempt:
            kept = [r for r in kept if r["step"] < attempt[0]["step"]] + attempt
    return kept


def write_state(run_url: str, state: RunState) -> None:
    """Tell how the run stands.

    Raises LonghaulError where a later attempt has told already: this one was given up, and does not
    know it.
    """
    before = read_state(run_url)
    if before is not None and before.attempt > state.attempt:
        raise LonghaulError(
            f"attempt {before.attempt} at {run_url} has taken over from attempt {state.attempt}, "
            "which writes nothing more"
        )
    storage.write_json(storage.join(run_url, "state.json"), state.model_dump())


def read_state(run_url: str) -> RunState | None:
    """How the run stands; None before its first attempt."""
    url = storage.join(run_url, "state.json")
    if not storage.exists(url):
        return None
    return RunState.model_validate(storage.read_json(url))


@functools.cache
def versions() -> dict[str, str]:
    """What code computes: longhaul's version and commit, and the libraries that matter."""
    found = {"python": platform.python_version()}
    for package in ("longhaul", "torch", "deepspeed", "ray", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    found["commit"] = commit_of(Path(__file__).parents[2])
    return found


def commit_of(checkout: Path) -> str:
    """A checkout's commit, marked where something that takes part has uncommitted changes;
    "unknown" outside git, and in a folder of somebody else's repository.

    What benchmarks have measured takes no part: the second of two would be marked for the first.
    """
    parts = (":(top)", ":(top,exclude)benchmarks/results")
    try:
        if not checkout.samefile(_git(checkout, "rev-parse", "--show-toplevel")):
            return "unknown"
        commit = _git(checkout, "rev-parse", "--short=12", "HEAD")
        changed = _git(checkout, "status", "--porcelain", "--untracked-files=no", "--", *parts)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def differences(kept: Any, wanted: Any, path: str = "") -> list[str]:
    """Where two documents differ, key by key, in words."""
    if isinstance(kept, dict) and isinstance(wanted, dict):
        found = []
        for key in sorted(kept.keys() | wanted.keys()):
            inner = f"{path}.{key}" if path else key
            found += differences(kept.get(key), wanted.get(key), inner)
        return found
    return [] if kept == wanted else [f"{path}: {kept!r} before, {wanted!r} now"]
