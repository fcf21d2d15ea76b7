"""Runs that are hurt again and again, and must end as if nothing had happened.

A case is one run in one setting with a list of faults, one an attempt; the run is started again
after each, and is then compared with the same run undisturbed.
"""

import random
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline import storage
from pipeline.config import Recipe
from pipeline.manifest import Dataset, open_dataset
from pipeline.train.run import read_state
from tests.faulty_s3 import Fault, FaultyS3, Kind
from tests.train.runs import (
    checkpoint_of,
    digests,
    environment,
    final_tensors,
    recipe,
    steps_in,
    write,
)

STEPS = 30
# What a rank suffers at an instant; on several workers the launcher ends the others.
PROCESS = ("SIGKILL", "SIGTERM", "SIGUSR1", "stop file", "frozen", "full disk")
# What is found when the run is started again after a kill.
HARM = ("flipped byte", "cut file", "missing file", "missing commit")
# What the bucket does.
STORE: tuple[Kind, ...] = ("unavailable", "error", "reset", "truncate", "corrupt")
AWAY = "bucket away for a minute"
ROUNDING = 2e-5


@dataclass
class Setting:
    """Where and how a run computes. workers: of the first attempt, the second, ... in turn."""

    name: str
    workers: tuple[int, ...] = (1,)
    engine: dict[str, object] = field(default_factory=lambda: {"train__engine": "torch"})
    remote: bool = False


SETTINGS = (
    Setting("alone, torch"),
    Setting(
        "alone, ZeRO-1 bf16",
        engine={"train__engine": "deepspeed", "train__zero_stage": 1, "train__precision": "bf16"},
    ),
    Setting("alone, torch, bucket", remote=True),
    Setting("two workers, ZeRO-2", (2,), {"train__engine": "deepspeed", "train__zero_stage": 2}),
    Setting(
        "two workers, ZeRO-3, bucket",
        (2,),
        {"train__engine": "deepspeed", "train__zero_stage": 3},
        remote=True,
    ),
    Setting(
        "3, 1, 2 workers, ZeRO-1", (3, 1, 2), {"train__engine": "deepspeed", "train__zero_stage": 1}
    ),
)


@dataclass
class Outcome:
    """What became of a case. survived: faults behind which the run went on as it should."""

    setting: Setting
    injected: list[str]
    equal: str  # "bits", "rounding" or what differs
    exactly_once: bool

    @property
    def survived(self) -> bool:
        wanted = "bits" if len(self.setting.workers) == 1 else "rounding"
        return self.exactly_once and self.equal in ("bits", wanted)


class Campaign:
    """All cases over one data set. ``bucket`` is a URL on ``s3``."""

    def __init__(self, dataset: Dataset, folder: Path, s3: FaultyS3, bucket: str) -> None:
        self._dataset = dataset
        self._folder = folder
        self._s3 = s3
        self._bucket = bucket
        self._undisturbed: dict[str, tuple[Recipe, int, int]] = {}

    def case(self, setting: Setting, kinds: list[str], seed: int) -> Outcome:
        """Hurt a run by ``kinds`` in turn; instants and ranks follow from ``seed``.

        On a bucket every attempt also suffers all that a store does.
        """
        chance = random.Random(seed)
        whole, instants, requests = self._whole(setting)
        hurt = self._recipe(setting, f"hurt-{seed}")
        injected: list[str] = []
        # So early that on the average there is something left for every fault.
        share = 2 / (len(kinds) + 1)
        for number, kind in enumerate([*kinds, ""]):
            workers = setting.workers[number % len(setting.workers)]
            faults = store_faults(kind, chance, requests) if setting.remote else []
            self._s3.suffer(*faults)
            at = chance.randrange(1, max(2, int(share * instants))) if kind else 0
            signalled = "SIGKILL" if kind in HARM else kind if kind in PROCESS else "none"
            said = self._run(hurt, workers, signalled, at, chance.randrange(workers))
            self._s3.suffer()
            injected += names_of(faults)
            if "FAULT" in said:
                injected.append(kind)
                if kind in HARM:
                    harm(hurt, kind, chance)
        stands = read_state(hurt.run_url)
        if stands is None or stands.state != "done":
            return Outcome(setting, injected, f"did not end: {stands}", False)
        equal = compare(final_tensors(whole), final_tensors(hurt))
        return Outcome(setting, injected, equal, digests(whole) == digests(hurt))

    def _whole(self, setting: Setting) -> tuple[Recipe, int, int]:
        """The undisturbed run of a setting, its instants on a rank, its requests to the bucket."""
        if setting.name not in self._undisturbed:
            whole = self._recipe(setting, f"whole-{len(self._undisturbed)}")
            before = self._s3.requests
            said = self._run(whole, setting.workers[0], "none", 0, 0)
            counted = re.search(r"INSTANTS (\d+)", said)
            assert counted, said
            requests = self._s3.requests - before
            self._undisturbed[setting.name] = (whole, int(counted[1]), max(1, requests))
        return self._undisturbed[setting.name]

    def _recipe(self, setting: Setting, name: str) -> Recipe:
        remote = setting.remote
        return recipe(
            self._dataset if not remote else self._remote_set(),
            f"{self._bucket}/runs" if remote else self._folder / "runs",
            name,
            train__steps=STEPS,
            train__checkpoint_every=3,
            train__keep_checkpoints=3,
            reading={"memory": 0, "ahead": 4096},
            **setting.engine,
        )

    def _remote_set(self) -> Dataset:
        return copied(self._dataset, f"{self._bucket}/set")

    def _run(self, wanted: Recipe, workers: int, kind: str, at: int, rank: int) -> str:
        """One attempt; what it printed."""
        child = ["-m", "tests.faults.child", str(write(wanted, self._folder)), kind, str(at)]
        launcher = [sys.executable]
        if workers > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone"]
            launcher += [f"--nproc-per-node={workers}"]
        ended = subprocess.run(
            [*launcher, *child, str(rank)],
            env=environment(LONGHAUL_STORAGE_PATIENCE="120"),
            capture_output=True,
            text=True,
            timeout=300,
        )
        return ended.stdout + ended.stderr


def store_faults(kind: str, chance: random.Random, requests: int) -> list[Fault]:
    """What a bucket does within so many requests: all that it can, or only be away."""
    if kind == AWAY:
        return [Fault("unavailable", seconds=60, after=chance.randrange(requests))]
    return [
        Fault(store, times=chance.randint(1, 4), after=chance.randrange(requests))
        for store in STORE
    ]


def names_of(faults: list[Fault]) -> list[str]:
    """Those that happened, as the report calls them."""
    return [AWAY if fault.seconds else fault.kind for fault in faults if fault.failed]


def harm(hurt: Recipe, kind: str, chance: random.Random) -> None:
    """Damage the newest checkpoint, as a crash or a disk may have left it."""
    steps = steps_in(hurt.run_url)
    if len(steps) < 2:
        return  # there must be one to fall back to
    newest = checkpoint_of(hurt.run_url, steps[-1])
    file = storage.join(newest.url, chance.choice(newest.commit.files).path)
    if kind == "missing commit":
        storage.remove(storage.join(newest.url, "checkpoint.json"))
    elif kind == "missing file":
        storage.remove(file)
    else:
        content = bytearray(storage.read_bytes(file))
        if kind == "cut file":
            del content[chance.randrange(len(content)) :]
        else:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        storage.write_bytes(file, bytes(content))


def copied(dataset: Dataset, url: str) -> Dataset:
    """The data set at ``url``, put there where it is not yet."""
    if not storage.exists(f"{url}/manifest.json"):
        for name in storage.files_below(dataset.url):
            content = storage.read_bytes(storage.join(dataset.url, name))
            storage.write_bytes(storage.join(url, name), content)
    return open_dataset(url)


def compare(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> str:
    """Whether two states are the same to "bits", to "rounding", or how far they are apart."""
    if a.keys() != b.keys():
        return "other tensors"
    if all(torch.equal(tensor, b[name]) for name, tensor in a.items()):
        return "bits"
    worst = max(float((tensor - b[name]).abs().max()) for name, tensor in a.items())
    return "rounding" if worst < ROUNDING else f"differs by {worst:.1e}"
