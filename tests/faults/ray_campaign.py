"""Runs on a Ray cluster that loses workers, nodes and drivers, and must end as if it had not."""

import random
import signal
import subprocess
import threading
from pathlib import Path

import psutil

from pipeline.config import Recipe
from pipeline.manifest import Dataset
from pipeline.train.run import metrics_url, read_state, request_stop
from tests.cluster.ray_nodes import RayNodes
from tests.faults.campaign import Outcome, Setting, compare
from tests.train.runs import (
    command,
    digests,
    final_tensors,
    recipe,
    train_apart,
    wait_for_text,
    write,
)

KINDS = (
    "worker killed",
    "worker frozen",
    "worker's disk full",
    "node lost",
    "node drained",
    "driver killed",
    "driver SIGTERM",
    "stop file",
)
STEPS = 1500
SETTING = Setting("two workers on two Ray nodes, ZeRO-1", (2,))
_FROZEN_SECONDS = 2.0
_NOTICE_SECONDS = 10


class RayCampaign:
    """Cases on one cluster, one after the other."""

    def __init__(self, dataset: Dataset, folder: Path, nodes: RayNodes) -> None:
        self._dataset = dataset
        self._folder = folder
        self._nodes = nodes
        self._workers = ["a", "b"]
        for name in self._workers:
            nodes.add(name)
        self._whole = self._recipe("whole", "torchrun")
        ended = train_apart(self._whole, folder, workers=2)
        assert ended.returncode == 0, ended.stderr

    def case(self, kind: str, seed: int) -> Outcome:
        """Hurt one run at a step that follows from ``seed``; start it again where it left."""
        chance = random.Random(seed)
        hurt = self._recipe(f"hurt-{seed}", "ray")
        step = chance.randrange(20, STEPS // 3)
        process = self._start(hurt)
        wait_for_text(process, Path(metrics_url(hurt.run_url, 1)), f'"step": {step},')
        self._hurt(kind, hurt, process, chance)
        process.communicate(timeout=240)
        if process.returncode != 0:
            again = self._start(hurt)
            said, told = again.communicate(timeout=240)
            if again.returncode != 0:
                return Outcome(SETTING, [kind], f"did not end: {said}{told}", False)
        stands = read_state(hurt.run_url)
        if stands is None or stands.state != "done":
            return Outcome(SETTING, [kind], f"did not end: {stands}", False)
        equal = compare(final_tensors(self._whole), final_tensors(hurt))
        return Outcome(SETTING, [kind], equal, digests(self._whole) == digests(hurt))

    def _recipe(self, name: str, launcher: str) -> Recipe:
        return recipe(
            self._dataset,
            self._folder / "runs",
            name,
            train__engine="deepspeed",
            train__zero_stage=1,
            train__steps=STEPS,
            train__checkpoint_every=10,
            data__lanes=2,
            placement={"workers": 2, "threads": 1, "launcher": launcher},
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
        node = chance.choice(self._workers)
        if kind == "worker killed":
            worker.kill()
        elif kind == "worker frozen":
            worker.suspend()
            threading.Timer(_FROZEN_SECONDS, worker.resume).start()
        elif kind == "worker's disk full":
            worker.rlimit(psutil.RLIMIT_FSIZE, (1000, psutil.RLIM_INFINITY))
        elif kind == "driver killed":
            driver.kill()
        elif kind == "driver SIGTERM":
            driver.send_signal(signal.SIGTERM)
        elif kind == "stop file":
            request_stop(hurt.run_url)
        else:  # a node goes, another comes in its place
            if kind == "node drained":
                self._nodes.drain(node, _NOTICE_SECONDS)
            else:
                self._nodes.lose(node)
            self._workers.remove(node)
            self._workers.append(f"{node}'")
            self._nodes.add(f"{node}'")
