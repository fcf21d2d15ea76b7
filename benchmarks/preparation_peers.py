"""Preparing one log with longhaul, RecBole and RecTools, each under the same cap on memory.

    python -m benchmarks.preparation_peers --recbole PYTHON --rectools PYTHON [--events 2e7]
        [--cap 16GiB] [--folder FOLDER]

PYTHON is that of an environment which holds the peer (RecBole wants numpy<2, pandas<3 and
setuptools<81). The clock runs from the log on disk, Parquet for longhaul and RecTools, a
tab-separated ``.inter`` for RecBole, to what training starts from: committed shards; RecBole's
sequential data set after ``data_preparation``; RecTools' data set and the training sequences of its
SASRec. Histories are cut to the newest 50 events by the peers, longhaul keeps them whole. Who
passes the cap is killed, and tried again with half of the log until it fits.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import ByteSize, TypeAdapter

from benchmarks.preparation import PREPARE, log_of, watched
from benchmarks.report import peers, surroundings, write_result

RECBOLE = """
import json, sys, time
folder, began = sys.argv[1], time.monotonic()
import torch, numpy
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
sys.argv = sys.argv[:1]
config = Config(model="SASRec", dataset="log", config_dict={
    "data_path": folder, "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "MAX_ITEM_LIST_LENGTH": 50, "train_neg_sample_args": None, "show_progress": False,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
    "use_gpu": False, "save_dataset": False, "save_dataloaders": False,
})
loaded = time.monotonic()
parts = data_preparation(config, create_dataset(config))
print(json.dumps({"imports": loaded - began, "prepare": time.monotonic() - loaded}))
"""

RECTOOLS = """
import json, sys, time
path, began = sys.argv[1], time.monotonic()
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
loaded = time.monotonic()
events = pd.read_parquet(path, columns=["user", "item", "timestamp"])
events.columns = [Columns.User, Columns.Item, Columns.Datetime]
events[Columns.Datetime] = pd.to_datetime(events[Columns.Datetime], unit="s")
events[Columns.Weight] = 1.0
model = SASRecModel(session_max_len=50)
model._init_data_preparator()
model.data_preparator.process_dataset_train(Dataset.construct(events))
model.data_preparator.get_dataloader_train()
print(json.dumps({"imports": loaded - began, "prepare": time.monotonic() - loaded}))
"""

_COLUMNS = ["user", "item", "timestamp"]


def as_inter(log: Path, folder: Path) -> Path:
    """The log as RecBole's atomic file; the folder that it lies in."""
    place = folder / f"{log.parent.name}-inter"
    path = place / "log" / "log.inter"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ["user_id:token", "item_id:token", "timestamp:float"]
        kinds = pa.schema([pa.field(name, pa.int64()) for name in names])
        rows = pyarrow.csv.WriteOptions(include_header=False, delimiter="\t")
        with open(f"{path}.partial", "wb") as text:
            text.write("\t".join(names).encode() + b"\n")  # the writer would quote it
            with pyarrow.csv.CSVWriter(text, kinds, write_options=rows) as writer:
                for file in sorted(log.glob("*.parquet")) if log.is_dir() else [log]:
                    for group in pq.ParquetFile(file).iter_batches(columns=_COLUMNS):
                        columns = [column.cast(pa.int64()) for column in group.columns]
                        writer.write_batch(pa.record_batch(columns, schema=kinds))
        Path(f"{path}.partial").rename(path)
    return place


def command(name: str, python: str, log: Path, folder: Path, cap: int) -> list[str]:
    """What prepares the log."""
    if name == "longhaul":
        options = {"inputs": [str(log)], "output": str(folder / "set"), "timestamp": "timestamp"}
        return [python, "-c", PREPARE, json.dumps(options | {"memory": cap // 2})]
    if name == "RecBole":
        return [python, "-c", RECBOLE, str(as_inter(log, folder))]
    return [python, "-c", RECTOOLS, str(log)]


def main() -> None:
    """Prepare the log with each and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--recbole", required=True)
    parser.add_argument("--rectools", required=True)
    parser.add_argument("--events", type=float, default=2e7)
    parser.add_argument("--cap", type=TypeAdapter(ByteSize).validate_python, default="16GiB")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "longhaul-load"
    )
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    cores = len(psutil.Process().cpu_affinity())
    pythons = {"longhaul": sys.executable, "RecBole": given.recbole, "RecTools": given.rectools}
    lines = ["# Preparation beside RecBole and RecTools", "", *surroundings(threads=cores)]
    lines += [
        peers(given.recbole, "recbole", "pandas", "numpy", "torch"),
        peers(given.rectools, "rectools", "pandas", "numpy", "torch"),
        f"- cap on memory: {given.cap / 2**30:.0f} GiB",
        "",
        "| events | by | seconds | of longhaul's | memory | of longhaul's | |",
        "| ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    sizes = {name: int(given.events) for name in pythons}
    while sizes:
        events = max(sizes.values())
        log = log_of(events, given.folder)
        ours = None
        for name in ("longhaul", *(name for name in sizes if name != "longhaul")):
            shutil.rmtree(given.folder / "set", ignore_errors=True)
            asked = command(name, pythons[name], log, given.folder, given.cap)
            found = watched(asked, given.folder, given.cap)
            ours = ours or found
            cells = [
                f"{events:,}",
                name,
                f"{found.seconds:,.1f}",
                f"{found.seconds / ours.seconds:.1f}",
                f"{found.memory / 2**30:.2f} GiB",
                f"{found.memory / ours.memory:.1f}",
                "killed" if found.killed else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
            if found.killed:
                sizes[name] = events // 2
            else:
                sizes.pop(name, None)
    write_result("preparation-peers", lines)


if __name__ == "__main__":
    main()
