"""The shuffle of ``longhaul prepare`` beside a sort of the same log by DuckDB and by Polars.

    python -m benchmarks.preparation_engines --duckdb PYTHON [--events 1e8] [--memory 2GiB]
        [--rounds 3] [--folder FOLDER]

PYTHON is that of an environment with duckdb and polars. All start from the same Parquet log and end
with every event on disk in the order of (user, time, file, row): longhaul's stages ``read`` and
``sort``; DuckDB's ``ORDER BY``, and its ``PARTITION_BY`` with an ``ORDER BY`` for each partition
after it; the sort of Polars' streaming engine. Each is told to use two thirds of the memory at
which it is killed, where it can be told. One after another, as many rounds as asked for.

What longhaul does on top is in its time: it hashes the users, checks every row, counts items and
ties, and flushes and records each partition, so that a start after a kill goes on from there.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import psutil
from pydantic import ByteSize, TypeAdapter

from benchmarks.preparation import PREPARE, Watched, log_of, watched
from benchmarks.report import peers, surroundings, write_result

_DUCKDB = """
import json, sys, time
import duckdb
log, folder, memory, threads = sys.argv[1:]
began = time.monotonic()
base = duckdb.connect()
base.sql(f"SET memory_limit = '{memory}B'")
base.sql(f"SET threads = {threads}")
base.sql(f"SET temp_directory = '{folder}/spill'")
rows = (
    "SELECT user, item, timestamp, file_row_number AS row,"
    " TRY_CAST(regexp_extract(filename, '([0-9]+)[.]parquet$', 1) AS USMALLINT) AS file"
    f" FROM read_parquet('{log}', filename = true, file_row_number = true)"
)
"""

ORDER_BY = f"""{_DUCKDB}
base.sql(f"COPY ({{rows}} ORDER BY user, timestamp, file, row) TO '{{folder}}/sorted.parquet'")
print(json.dumps({{"sort": time.monotonic() - began}}))
"""

PARTITION_BY = f"""{_DUCKDB}
import pathlib
base.sql(
    f"COPY (SELECT *, hash(user) % 16 AS part FROM ({{rows}}))"
    f" TO '{{folder}}/parts' (FORMAT parquet, PARTITION_BY (part))"
)
dealt = time.monotonic()
for number, part in enumerate(sorted(pathlib.Path(f"{{folder}}/parts").iterdir())):
    base.sql(
        f"COPY (SELECT * FROM read_parquet('{{part}}/*.parquet')"
        f" ORDER BY user, timestamp, file, row)"
        f" TO '{{folder}}/sorted-{{number}}.parquet'"
    )
print(json.dumps({{"read": dealt - began, "sort": time.monotonic() - dealt}}))
"""

POLARS = """
import json, os, sys, time
log, folder, memory, threads = sys.argv[1:]
os.environ["POLARS_MAX_THREADS"] = threads
import polars
began = time.monotonic()
columns = ["user", "item", "timestamp"]
events = polars.scan_parquet(log).select(columns).with_row_index("row")
events.sort("user", "timestamp", "row").sink_parquet(f"{folder}/sorted.parquet")
print(json.dumps({"sort": time.monotonic() - began}))
"""

_PEERS = {"DuckDB, ORDER BY": ORDER_BY, "DuckDB, PARTITION_BY": PARTITION_BY, "Polars": POLARS}


def shuffle_of(found: Watched) -> float:
    """Seconds from the log to events in their order."""
    return sum(found.stages.get(stage, 0.0) for stage in ("read", "sort"))


def main() -> None:
    """Sort the log with each and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--duckdb", required=True)
    parser.add_argument("--events", type=float, default=1e8)
    parser.add_argument("--memory", type=TypeAdapter(ByteSize).validate_python, default="2GiB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "longhaul-load"
    )
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    cores = len(psutil.Process().cpu_affinity())
    log = log_of(int(given.events), given.folder)
    output = given.folder / "set"
    told = TypeAdapter(ByteSize).validate_python(f"{given.memory * 2 // 3}B")
    options = {"inputs": [str(log)], "output": str(output), "timestamp": "timestamp"}
    ours = [sys.executable, "-c", PREPARE, json.dumps(options | {"memory": told})]
    files = f"{log}/*.parquet" if log.is_dir() else str(log)
    commands = {"longhaul": ours} | {
        name: [given.duckdb, "-c", code, files, str(output), str(told), str(cores)]
        for name, code in _PEERS.items()
    }
    found: dict[str, list[Watched]] = {name: [] for name in commands}
    for _ in range(given.rounds):
        for name, command in commands.items():
            shutil.rmtree(output, ignore_errors=True)
            if name != "longhaul":
                (output / "spill").mkdir(parents=True)
            found[name].append(watched(command, given.folder, given.memory))
            latest = found[name][-1]
            print(name, "killed" if latest.killed else f"{shuffle_of(latest):.1f} s", flush=True)
    shutil.rmtree(output, ignore_errors=True)
    lines = ["# The shuffle beside DuckDB and Polars", "", *surroundings(threads=cores)]
    lines += [
        peers(given.duckdb, "duckdb", "polars"),
        f"- {int(given.events):,} events, killed at {given.memory / 2**30:.1f} GiB, medians of"
        f" {given.rounds} rounds",
        "",
        "| by | seconds | of longhaul's | memory | disk |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    base = median(map(shuffle_of, found["longhaul"]))
    for name, each in found.items():
        whole = [one for one in each if not one.killed]
        seconds = median(map(shuffle_of, whole)) if whole else None
        cells = [
            name,
            "killed" if seconds is None else f"{seconds:,.1f}",
            "" if seconds is None else f"{seconds / base:.2f}",
            f"{max(one.memory for one in each) / 2**30:.2f} GiB",
            f"{max(one.disk for one in each) / 1e9:.2f} GB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    write_result("preparation-engines", lines)


if __name__ == "__main__":
    main()
