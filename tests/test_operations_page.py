"""The commands in docs/operations.md: run, or checked for their names where they need a cluster."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3fs
import typer
from typer.core import TyperGroup

from pipeline import process
from tests.faulty_s3 import FaultyS3
from tests.train.runs import ROOT, environment

_NEEDS = "*Needs*"


@dataclass
class Block:
    """Commands of a section. needs: whether the text before says what they need."""

    section: str
    needs: bool
    commands: str


def blocks() -> list[Block]:
    """All blocks of the page, in order."""
    found = []
    for section in (ROOT / "docs" / "operations.md").read_text().split("\n## ")[1:]:
        parts = re.split(r"```sh\n(.*?)```\n", section, flags=re.DOTALL)
        for text, commands in zip(parts[::2], parts[1::2], strict=False):
            found.append(Block(section.splitlines()[0], _NEEDS in text, commands))
    return found


def commands_of_longhaul() -> list[list[str]]:
    """Every longhaul command on the page, as its words."""
    found = []
    for block in blocks():
        for line in block.commands.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            for start in (["longhaul"], ["-m", "pipeline"]):
                for place in range(len(words)):
                    if words[place : place + len(start)] == start:
                        found.append(words[place + len(start) :])
    return found


def test_the_page_is_read_as_it_is_meant() -> None:
    sections = {block.section: [] for block in blocks()}
    for block in blocks():
        sections[block.section].append(block.needs)
    assert sections == {
        "Installation": [True],
        "A laptop": [False, False],
        "Every day anew": [False],
        "A log for a load test": [True],
        "One server with GPUs": [True],
        "A Ray cluster": [True, True],
        "SLURM": [True, True],
        "Kubernetes": [False, True, True, True],
        "Object stores": [False],
        "Weights & Biases": [False, True],
    }


@pytest.mark.parametrize("words", commands_of_longhaul(), ids=" ".join)
def test_commands_and_their_options_exist(words: list[str]) -> None:
    group = typer.main.get_command(process.app)
    assert isinstance(group, TyperGroup)
    command = group.commands[words[0]]
    given = command.make_context(words[0], words[1:])
    assert given.command is command
    named = [word for word in words if word.startswith(("configs/", "cluster/"))]
    assert all((ROOT / name).exists() for name in named)


@pytest.fixture
def buckets(s3_server: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The buckets that the page speaks of."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    for name in ("longhaul", "trial"):
        s3fs.S3FileSystem().mkdir(name)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("buckets")
def test_what_needs_no_cluster_runs(tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "\n".join(block.commands for block in blocks() if not block.needs)
    said = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment(PATH=path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert (tmp_path / "work" / "page" / "report.png").exists()
    assert list((tmp_path / "work/runs/tracked/wandb").glob("offline-run-*"))
    assert "kind: RayJob" in said.stdout
