"""The loader alone: from objects to packed batches, beside loaders as they are commonly used.

    python -m benchmarks.loader [--users 200000] [--seconds 10]

All contenders read the same histories in one process from local files in the page cache, turn and
turn about, and fill micro-batches of 65,536 tokens; longhaul checks every byte against its index
and permutes the segments. webdataset, LitData and MosaicML Streaming hold one user a record, as
their examples do; those that are not installed are left out, and named. Tokens count by the second
of CPU time of the process, all its threads together. longhaul also reads from a bucket on loopback,
where the server, in a process of its own, is the limit.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import surroundings, write_result
from pipeline import storage
from pipeline.manifest import Dataset, open_dataset
from pipeline.prepare import PrepareOptions, prepare
from pipeline.prepare.synth import SynthOptions, generate
from pipeline.stream.reader import ReadingConfig
from pipeline.stream.stream import Stream, StreamConfig
from pipeline.world import use_threads

TOKENS = 65_536
TURNS = 5


def longhaul(dataset: Dataset, reading: ReadingConfig) -> Iterator[int]:
    """Tokens of each micro-batch, epoch after epoch."""
    config = StreamConfig(lane_tokens=TOKENS)
    stream = Stream(dataset, config, seed=0, rank=0, world_size=1, reading=reading)
    epoch = 0
    stream.start(epoch)
    while True:
        step = stream.next_step()
        if step.segments:
            yield step.tokens
        else:
            epoch += 1
            stream.start(epoch)


def packed(histories: Iterable[np.ndarray]) -> Iterator[int]:
    """Records of one user each as micro-batches: inputs, targets, offsets."""
    held: list[np.ndarray] = []
    room = TOKENS
    for history in histories:
        if len(history) - 1 > room:
            lengths = torch.tensor([0, *(len(h) - 1 for h in held)])
            torch.from_numpy(np.concatenate([h[:-1] for h in held]).astype(np.int64))
            torch.from_numpy(np.concatenate([h[1:] for h in held]).astype(np.int64))
            lengths.cumsum(0)
            yield TOKENS - room
            held, room = [], TOKENS
        held.append(history)
        room -= len(history) - 1


def for_ever(epoch: Callable[[], Iterable[np.ndarray]]) -> Iterator[np.ndarray]:
    """One epoch after the other."""
    while True:
        yield from epoch()


def with_webdataset(histories: list[np.ndarray], folder: Path) -> Iterator[int]:
    """One record a user, decoded by webdataset's own reader of npy."""
    import webdataset as wds

    with wds.ShardWriter(f"{folder}/%05d.tar", maxcount=20_000, verbose=0) as writer:
        for number, history in enumerate(histories):
            writer.write({"__key__": f"{number:09d}", "items.npy": history})
    shards = sorted(map(str, folder.glob("*.tar")))

    def epoch() -> Iterable[np.ndarray]:
        read = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(1000)
        return (sample[0] for sample in read.decode().to_tuple("items.npy"))

    return packed(for_ever(epoch))


def with_litdata(histories: list[np.ndarray], folder: Path) -> Iterator[int]:
    """One record a user, in chunks of 64 MB."""
    import litdata

    litdata.optimize(
        fn=_same,
        inputs=histories,
        output_dir=str(folder),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )
    read = litdata.StreamingDataset(str(folder), shuffle=True)
    return packed(for_ever(lambda: iter(read)))


def _same(history: np.ndarray) -> np.ndarray:
    return history


def with_streaming(histories: list[np.ndarray], folder: Path) -> Iterator[int]:
    """One record a user, in shards of 64 MB."""
    from streaming import MDSWriter, StreamingDataset

    columns = {"items": "ndarray:uint32"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 26) as writer:
        for history in histories:
            writer.write({"items": history})
    read = StreamingDataset(local=str(folder), shuffle=True, batch_size=1)
    return packed(for_ever(lambda: (sample["items"] for sample in read)))


PEERS = {
    "webdataset": with_webdataset,
    "litdata": with_litdata,
    "streaming": with_streaming,
}


def rates(running: Iterator[int], seconds: float) -> tuple[float, float]:
    """Tokens by the second of CPU time, and by the second."""
    tokens, began, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        tokens += next(running)
    return tokens / (time.process_time() - cpu), tokens / (time.perf_counter() - began)


def train_parts(dataset: Dataset) -> list[np.ndarray]:
    """Each user's training part."""
    return [
        member.items[int(begin) : int(begin + end)]
        for member in map(dataset.read, range(len(dataset)))
        for begin, end in zip(member.offsets[:-1], member.splits[:, 0], strict=True)
        if end > 1
    ]


def bucket() -> tuple[subprocess.Popen[str], str]:
    """An S3 server in a process of its own, and the URL of a bucket on it."""
    script = (
        "import json, sys\n"
        "from tests.faulty_s3 import FaultyS3\n"
        "print(json.dumps(FaultyS3().environment), flush=True)\n"
        "sys.stdin.read()\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    os.environ |= json.loads(server.stdout.readline())
    storage.filesystem("s3://loader")[0].mkdir("loader")
    return server, "s3://loader/set"


def main() -> None:
    """Measure and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each turn")
    given = parser.parse_args()
    use_threads(1)
    server, remote = bucket()
    with tempfile.TemporaryDirectory() as folder:
        generate(SynthOptions(users=given.users, events=100 * given.users), f"{folder}/log")
        log = f"{folder}/log/events.parquet"
        prepare(PrepareOptions(inputs=[log], output=f"{folder}/set", timestamp="timestamp"))
        prepare(PrepareOptions(inputs=[log], output=remote, timestamp="timestamp"))
        local, far = open_dataset(f"{folder}/set"), open_dataset(remote)
        again = ReadingConfig(memory=0)
        running = {
            "longhaul, files": longhaul(local, again),
            "longhaul, members in memory": longhaul(local, ReadingConfig(memory=8 << 30)),
            "longhaul, bucket through s3fs": longhaul(far, again),
            "longhaul, bucket through obstore": longhaul(
                far, ReadingConfig(memory=0, client="obstore")
            ),
        }
        histories = train_parts(local)
        missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
        for name, start in PEERS.items():
            if name not in missing:
                Path(folder, name).mkdir()
                running[f"{name}, a record a user"] = start(histories, Path(folder, name))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
        for contender in running.values():
            rates(contender, given.seconds)  # warms caches; fills the memory
        for turn in range(TURNS):
            for name, contender in running.items():
                found[name].append(rates(contender, given.seconds))
                print(f"turn {turn + 1}: {name} {found[name][-1][0] / 1e6:,.1f} M tokens/s of CPU")
    server.communicate()
    lines = ["| loader | M tokens / s of CPU time | M tokens / s |", "| --- | ---: | ---: |"]
    for name, turns in found.items():
        cpu, wall = (statistics.median(column) / 1e6 for column in zip(*turns, strict=True))
        lines.append(f"| {name} | {cpu:,.1f} | {wall:,.1f} |")
    write_result(
        "loader",
        [
            "# The loader alone",
            "",
            *surroundings(threads=1),
            "",
            f"{given.users:,} users, {100 * given.users:,} events with timestamps; from object to "
            f"packed batch of {TOKENS:,} tokens; medians of {TURNS} turns, turn and turn about."
            + (f" Not installed here: {', '.join(missing)}." if missing else ""),
            "",
            *lines,
        ],
    )


if __name__ == "__main__":
    main()
