"""Where a benchmark's result goes: dated Markdown, and JSON beside it where a program would read
it, that name machine, versions and commit."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.train.run import versions

RESULTS = Path(__file__).parent / "results"


def surroundings(threads: int) -> list[str]:
    """Date, machine, versions and commit as Markdown lines."""
    found = facts()
    names = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    return [
        f"- {found['date']}, commit {found['commit']}",
        f"- {found['processor']}, {found['cores']} cores, {threads} threads used",
        f"- {names}",
    ]


def facts() -> dict[str, Any]:
    """Date, machine, versions and commit for a program."""
    found = dict(versions())
    return {
        "date": datetime.date.today().isoformat(),
        "commit": found.pop("commit"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": found,
    }


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


def write_result(name: str, lines: Sequence[str], measured: dict[str, Any] | None = None) -> None:
    """Print the result and keep it under today's date; ``measured`` as JSON with the facts."""
    text = "\n".join([*lines, ""])
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.date.today().isoformat()}-{name}.md"
    path.write_text(text)
    print(f"{text}\nwritten to {path}")
    if measured is not None:
        write_json(path.with_suffix(".json"), measured)


def write_json(path: Path, measured: dict[str, Any]) -> None:
    """The facts, and under ``measured`` what was."""
    path.write_text(json.dumps(facts() | {"measured": measured}, indent=1) + "\n")
