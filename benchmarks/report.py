"""Where a benchmark's result goes: dated Markdown that names machine, versions and commit."""

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pipeline.train.run import versions

RESULTS = Path(__file__).parent / "results"


def surroundings(threads: int) -> list[str]:
    """Date, machine, versions and commit as Markdown lines."""
    found = dict(versions())
    commit = found.pop("commit")
    names = ", ".join(f"{package} {version}" for package, version in found.items())
    return [
        f"- {datetime.date.today().isoformat()}, commit {commit}",
        f"- {_processor()}, {os.cpu_count()} cores, {threads} threads used",
        f"- {names}",
    ]


def peers(python: str, *packages: str) -> str:
    """The versions of packages in another environment, as a Markdown line."""
    ask = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]))"
    said = subprocess.run(
        [python, "-c", ask, *packages], check=True, stdout=subprocess.PIPE, text=True
    )
    named = zip(packages, said.stdout.split(), strict=True)
    return "- beside it: " + ", ".join(f"{package} {version}" for package, version in named)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        flags = next((line for line in lines if line.startswith("flags")), "").split()
        widest = next((f for f in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f in flags), "")
        name = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
        return f"{name} ({widest})"
    return platform.processor()


def write_result(name: str, lines: Sequence[str]) -> None:
    """Print the result and keep it under today's date."""
    text = "\n".join([*lines, ""])
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.date.today().isoformat()}-{name}.md"
    path.write_text(text)
    print(f"{text}\nwritten to {path}")
