"""What preparing a log costs: time, memory and disk, from ten million events to a billion.

    python -m benchmarks.preparation [--events 1e7 1e8 1e9] [--memory 8GiB] [--folder FOLDER]

The log has the shape of Yambda-5B (``longhaul synth --preset yambda-5b``). It is read through once
before the clock starts, so that as much of it as fits is in the page cache and a slow disk is paid
for what is written; the data set is committed, every file flushed, when it stops. Memory is the
resident memory of all processes together, disk what the file system has less of at most, both
sampled ten times a second. ``FOLDER`` needs 40 bytes an event; the log stays there and is used
again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.report import surroundings, write_result
from tests.train.runs import environment

YAMBDA = 4_785_859_887  # events of the whole preset
VARIANTS = {
    "no filter": [],
    "5-core": ["--min-item-events=5", "--min-user-events=5", "--count-filter=k_core"],
}


@dataclass
class Watched:
    """What a process took while it ran. cpu: seconds of all its threads. killed: whether it took
    more memory than it may."""

    seconds: float = 0.0
    cpu: float = 0.0
    memory: int = 0
    disk: int = 0
    killed: bool = False
    stages: dict[str, float] = field(default_factory=dict)


def watched(command: list[str], folder: Path, cap: int | None = None) -> Watched:
    """Run ``command`` to its end, or until it takes more than ``cap`` bytes of memory.

    Its last line is JSON, seconds by stage. Raises RuntimeError with what it said where it fails.
    """
    found = Watched()
    free = shutil.disk_usage(folder).free
    began = time.monotonic()
    process = psutil.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            try:
                family = [process, *process.children(recursive=True)]
                found.memory = max(found.memory, sum(p.memory_info().rss for p in family))
                times = process.cpu_times()
                found.cpu = max(found.cpu, times.user + times.system)
            except psutil.NoSuchProcess:
                return
            found.disk = max(found.disk, free - shutil.disk_usage(folder).free)
            if cap is not None and found.memory > cap:
                found.killed = True
                process.kill()

    watcher = threading.Thread(target=watch)
    watcher.start()
    said, _ = process.communicate()
    found.seconds = time.monotonic() - began
    done.set()
    watcher.join()
    if found.killed:
        return found
    if process.returncode:
        raise RuntimeError(said)
    found.stages = json.loads(said.splitlines()[-1])
    return found


PREPARE = """
import json, sys, time
from pipeline.prepare import PrepareOptions, prepare
stages, last = {}, [None, time.monotonic()]
def tell(stage, done, total):
    if stage != last[0]:
        now = time.monotonic()
        if last[0]:
            stages[last[0]] = stages.get(last[0], 0) + now - last[1]
        last[:] = [stage, now]
prepare(PrepareOptions(**json.loads(sys.argv[1])), tell)
tell("", 0, 0)
print(json.dumps(stages))
"""


def log_of(events: int, folder: Path) -> Path:
    """A log of about so many events in ``folder``, made where it is not there yet."""
    place = folder / f"log-{events}"
    if not (place / "truth.json").exists():
        command = [sys.executable, "-m", "pipeline", "synth", str(place), "--preset", "yambda-5b"]
        command += ["--fraction", f"{events / YAMBDA:.9f}", "--events", str(events)]
        subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    return place / "events.parquet"


def files_of(path: Path) -> list[Path]:
    """A file, or all files below a folder."""
    return [file for file in (path, *path.rglob("*")) if file.is_file()]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in files_of(path))


def read_through(path: Path) -> None:
    """Bring a log into the page cache."""
    for name in files_of(path):
        with open(name, "rb") as file:
            while file.read(2**24):
                pass


def main() -> None:
    """Prepare logs of growing size and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--events", nargs="+", type=float, default=[1e7, 1e8, 1e9])
    parser.add_argument("--memory", default="8GiB")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "longhaul-load"
    )
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    cores = len(psutil.Process().cpu_affinity())
    lines = ["# Preparation", "", *surroundings(threads=cores)]
    lines.append(f"- `python -m benchmarks.preparation` with `--memory {given.memory}`")
    lines += [
        "",
        "| events | filter | seconds | M events/s | per core | CPU ns an event | memory | log "
        "| disk | data set | seconds in stages |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for events in map(int, given.events):
        log = log_of(events, given.folder)
        for name, filters in VARIANTS.items():
            output = given.folder / "set"
            shutil.rmtree(output, ignore_errors=True)
            read_through(log)
            options = {
                "inputs": [str(log)],
                "output": str(output),
                "timestamp": "timestamp",
                "memory": given.memory,
            }
            options |= {f[2:].split("=")[0].replace("-", "_"): f.split("=")[1] for f in filters}
            found = watched([sys.executable, "-c", PREPARE, json.dumps(options)], given.folder)
            stages = ", ".join(f"{stage} {took:,.0f}" for stage, took in found.stages.items())
            rate = events / found.seconds / 1e6
            cells = [
                f"{events:,}",
                name,
                f"{found.seconds:,.1f}",
                f"{rate:.2f}",
                f"{rate / cores:.2f}",
                f"{found.cpu / events * 1e9:,.0f}",
                f"{found.memory / 2**30:.2f} GiB",
                f"{size_of(log) / 1e9:.2f} GB",
                f"{found.disk / 1e9:.2f} GB",
                f"{size_of(output) / 1e9:.2f} GB",
                stages,
            ]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
            shutil.rmtree(output)
    write_result("preparation", lines)


if __name__ == "__main__":
    main()
