"""What a command loads before it works: quick help, and OpenMP told how to wait before torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from pipeline.manifest import Dataset
from pipeline.process import app
from tests.train.runs import ROOT, environment, recipe, write

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]
HEAVY = {"torch", "numpy", "pyarrow", "polars", "ray", "deepspeed", "webdataset", "wandb", "fsspec"}

LOADED = """
import sys
from pipeline.process import run_command
code = run_command()
print("\\nLOADED", *{name.partition(".")[0] for name in sys.modules})
sys.exit(code)
"""


def loaded_by(*arguments: str) -> set[str]:
    """The top-level packages that a command has imported when it is through."""
    said = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    return set(said.stdout.splitlines()[-1].split()[1:])


def test_the_help_of_all_commands_loads_no_library() -> None:
    assert not loaded_by("--help") & (HEAVY | {"pydantic", "yaml", "matplotlib"})


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_loads_no_heavy_library(command: str) -> None:
    assert not loaded_by(command, "--help") & HEAVY


def spins_of(arguments: list[str], **env: str) -> list[int]:
    """How often libgomp looks again before a thread sleeps: each process says so that loads it."""
    ours = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    clean = {k: v for k, v in os.environ.items() if k not in ours}
    said = subprocess.run(
        [sys.executable, *arguments],
        env={**clean, "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "verbose", **env},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    return [int(found) for found in re.findall(r"GOMP_SPINCOUNT = '(\d+)'", said.stderr)]


def test_threads_spin_briefly(small_set: Dataset, tmp_path: Path) -> None:
    file = str(write(recipe(small_set, tmp_path, train__steps=1), tmp_path))
    assert spins_of(["-m", "pipeline", "train", file]) == [1000]
    assert spins_of(["-c", "import longhaul; longhaul.build"]) == [1000]
    (spins,) = spins_of(["-c", "import longhaul; longhaul.build"], OMP_WAIT_POLICY="active")
    assert spins > 10**6, "what the user says goes first"
    assert spins_of(["-c", "import longhaul; longhaul.build"], OMP_WAIT_POLICY="passive") == [0]


def test_threads_spin_briefly_under_torchrun(small_set: Dataset, tmp_path: Path) -> None:
    file = str(write(recipe(small_set, tmp_path, train__steps=1), tmp_path))
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pipeline"]
    # torchrun itself has loaded torch before any of our code; it only waits for its workers.
    assert spins_of([*start, "train", file])[1:] == [1000, 1000]


def test_training_alone_loads_no_library_that_it_does_not_use(
    small_set: Dataset, tmp_path: Path
) -> None:
    file = str(write(recipe(small_set, tmp_path, train__steps=1), tmp_path))
    found = loaded_by("train", file)
    assert {"torch", "pyarrow"} <= found
    unused = {"ray", "deepspeed", "wandb", "pandas", "polars", "matplotlib", "webdataset"}
    assert not found & unused
