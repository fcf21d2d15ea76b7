"""Runs on a Ray cluster that loses workers, nodes and drivers, and must end as if it had not.

Data and runs are in a bucket, which fails as well.
"""

import random
import signal
import subprocess
import threading
from pathlib import Path

import psutil

from pipeline.config import Recipe
from pipeline.manifest import Dataset
from pipeline.train.run import read_state, request_stop
from tests.cluster.ray_nodes import RayNodes
from tests.faults.campaign import (
    AWAY,
    HARM,
    Outcome,
    Setting,
    compare,
    copied,
    harm,
    names_of,
    store_faults,
)
from tests.faulty_s3 import FaultyS3
from tests.train.runs import (
    command,
    digests,
    final_tensors,
    recipe,
    train_apart,
    wait_for_step,
    write,
)

FOR_GOOD = "node lost for good"
KINDS = (
    "worker killed",
    "worker frozen",
    "worker's disk full",
    "node lost",
    "node drained",
    FOR_GOOD,
    "driver killed",
    "driver SIGTERM",
    "stop file",
    AWAY,
    *HARM,
)
STEPS = 1500
FIXED = Setting("two workers on two Ray nodes, ZeRO-1, bucket", (2,))
ELASTIC = Setting("1 to 2 workers on Ray nodes, ZeRO-1, bucket", (2, 1))
_FROZEN_SECONDS = 2.0
_NOTICE_SECONDS = 10
_REQUESTS = 100  # of a run after it was hurt, within which its bucket fails


class RayCampaign:
    """Cases on one cluster, one after the other. ``bucket`` is a URL on ``s3``."""

    def __init__(
        self, dataset: Dataset, folder: Path, nodes: RayNodes, s3: FaultyS3, bucket: str
    ) -> None:
        self._dataset = copied(dataset, f"{bucket}/set")
        self._folder = folder
        self._nodes = nodes
        self._s3 = s3
        self._runs = f"{bucket}/runs-on-ray"
        self._joined = 0
        self._workers = ["a", "b"]
        for name in self._workers:
            nodes.add(name)
        self._whole = self._recipe("whole", launcher="torchrun")
        ended = train_apart(self._whole, folder, workers=2)
        assert ended.returncode == 0, ended.stderr

    def case(self, kind: str, seed: int) -> Outcome:
        """Hurt one run at a step that follows from ``seed``; start it again where it left."""
        chance = random.Random(seed)
        setting = ELASTIC if kind == FOR_GOOD else FIXED
        hurt = self._recipe(f"hurt-{seed}", launcher="ray")
        if setting is ELASTIC:
            hurt = self._recipe(f"hurt-{seed}", launcher="ray", workers=[1, 2])
        step = chance.randrange(20, STEPS // 3)
        process = self._start(hurt)
        wait_for_step(process, hurt, step)
        faults = store_faults(kind, chance, _REQUESTS)
        self._s3.suffer(*faults)
        injected = [] if kind == AWAY else [kind]
        self._hurt(kind, hurt, process, chance)
        process.communicate(timeout=400)
        if process.returncode != 0:
            if kind in HARM:
                harm(hurt, kind, chance)
            again = self._start(hurt)
            said, told = again.communicate(timeout=400)
            if again.returncode != 0:
                return Outcome(setting, injected, f"did not end: {said}{told}", False)
        self._s3.suffer()
        injected += names_of(faults)
        if kind == FOR_GOOD:
            self._join()
        stands = read_state(hurt.run_url)
        if stands is None or stands.state != "done":
            return Outcome(setting, injected, f"did not end: {stands}", False)
        equal = compare(final_tensors(self._whole), final_tensors(hurt))
        return Outcome(setting, injected, equal, digests(self._whole) == digests(hurt))

    def _recipe(self, name: str, **placement: object) -> Recipe:
        return recipe(
            self._dataset,
            self._runs,
            name,
            train__engine="deepspeed",
            train__zero_stage=1,
            train__steps=STEPS,
            train__checkpoint_every=10,
            train__optimizer={"lr": 1e-4, "clip_norm": 0.5},  # rounding stays rounding for so many
            data__lanes=2,
            placement={"workers": 2, "threads": 1, **placement},
        )

    def _start(self, hurt: Recipe) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            command(write(hurt, self._folder)),
            env=self._nodes.env,
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _hurt(
        self, kind: str, hurt: Recipe, driver: "subprocess.Popen[str]", chance: random.Random
    ) -> None:
        worker = chance.choice(self._nodes.workers())
        if kind == "worker killed":
            worker.kill()
        elif kind == "worker frozen":
            worker.suspend()
            threading.Timer(_FROZEN_SECONDS, worker.resume).start()
        elif kind == "worker's disk full":
            worker.rlimit(psutil.RLIMIT_FSIZE, (1000, psutil.RLIM_INFINITY))
        elif kind == "driver killed" or kind in HARM:
            driver.kill()
        elif kind == "driver SIGTERM":
            driver.send_signal(signal.SIGTERM)
        elif kind == "stop file":
            request_stop(hurt.run_url)
        elif kind == "node drained":
            self._nodes.drain(self._leave(chance), _NOTICE_SECONDS)
            self._join()
        elif kind == "node lost":
            self._nodes.lose(self._leave(chance))
            self._join()
        elif kind == FOR_GOOD:
            self._nodes.lose(self._leave(chance))

    def _leave(self, chance: random.Random) -> str:
        return self._workers.pop(chance.randrange(len(self._workers)))

    def _join(self) -> None:
        """Another node comes in the place of one that went."""
        self._joined += 1
        self._workers.append(f"new-{self._joined}")
        self._nodes.add(self._workers[-1])
