"""A run on several hosts, one of which is cut off from all others: what happens, and when.

The cut-off host is that of rank 0, which writes the commits and the metrics. It comes back while
processes of the first attempt may still be there, which could then do harm.
"""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import Recipe
from pipeline.manifest import Dataset
from pipeline.train.checkpoint import places_in
from pipeline.train.run import RunState, metrics_files, read_metrics, read_state
from tests.cluster.ray_hosts import RayHosts
from tests.faults.campaign import compare, copied
from tests.train.runs import (
    command,
    digests,
    final_tensors,
    recipe,
    records,
    train_apart,
    wait_for_step,
    write,
)

STEPS = 300


@dataclass
class Story:
    """How a run ended, and what happened to it: seconds after the link was cut, and what.

    overwritten: files of the first attempt's committed checkpoints that are new or other than they
    were when the second attempt trained.
    """

    state: RunState
    equal: str  # the weights to those of the undisturbed run, as compare tells
    exactly_once: bool
    metrics: dict[str, float]
    overwritten: list[str]
    events: list[tuple[float, str]]


class CutHosts:
    """Runs on a cluster of two nodes, in a bucket that the hosts reach."""

    def __init__(self, dataset: Dataset, folder: Path, nodes: RayHosts, bucket: str) -> None:
        self._dataset = copied(dataset, f"{bucket}/set")
        self._folder = folder
        self._nodes = nodes
        self._bucket = bucket
        self._begun = 0
        self._whole = self._recipe("whole", launcher="torchrun")
        ended = train_apart(self._whole, folder, workers=2)
        assert ended.returncode == 0, ended.stderr
        self.metrics = _metrics(self._whole)  # of the undisturbed run

    def goes_on(self) -> Story:
        """A run of one or two workers goes on without the host, which then comes back."""
        act = self._begin(workers=(1, 2))
        act.cut()
        before = act.second_attempt()
        act.come_back()
        return self._end(act, before)

    def waits(self) -> Story:
        """A run of two workers waits until the host has come back."""
        act = self._begin(workers=2)
        act.cut()
        act.come_back()
        before = act.second_attempt()
        return self._end(act, before)

    def _begin(self, workers: int | tuple[int, int]) -> "_Act":
        self._begun += 1
        cut = self._recipe(f"cut-{self._begun}", launcher="ray", workers=workers)
        driver = subprocess.Popen(
            self._nodes.on("head", command(write(cut, self._folder))),
            env=self._nodes.env,
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return _Act(cut, driver, self._nodes)

    def _end(self, act: "_Act", before: dict[str, bytes]) -> Story:
        cut = act.run
        said, _ = act.driver.communicate()
        assert act.driver.returncode == 0, said
        stands = read_state(cut.run_url)
        assert stands is not None
        for attempt in range(3, stands.attempt + 1):  # the host that came back is used again
            act.tell_attempt(attempt)
        act.tell("done", max(record["time"] for record in records(cut)))
        after = _committed(cut, attempt=1)
        return Story(
            state=stands,
            equal=compare(final_tensors(self._whole), final_tensors(cut)),
            exactly_once=digests(self._whole) == digests(cut),
            metrics=_metrics(cut),
            overwritten=[file for file in after if after[file] != before.get(file)],
            events=sorted(act.events),
        )

    def _recipe(self, name: str, **placement: Any) -> Recipe:
        return recipe(
            self._dataset,
            f"{self._bucket}/runs",
            name,
            train__engine="deepspeed",
            train__zero_stage=1,
            train__steps=STEPS,
            train__checkpoint_every=10,
            train__keep_checkpoints=STEPS,  # so that no trace is removed
            train__validation={"every": STEPS},
            train__optimizer={"lr": 1e-4, "clip_norm": 0.5},  # rounding stays rounding for so many
            data__lanes=2,
            placement={"workers": 2, "threads": 1, **placement},
        )


class _Act:
    """What is done to one run, and what is seen of it."""

    def __init__(self, run: Recipe, driver: "subprocess.Popen[str]", nodes: RayHosts) -> None:
        self.run, self.driver = run, driver
        self.events: list[tuple[float, str]] = []
        self._nodes = nodes
        self._host = ""
        self._began = 0.0

    def tell(self, what: str, at: float) -> None:
        """Note an event."""
        self.events.append((at - self._began, what))

    def cut(self) -> None:
        """Cut off the host of rank 0 while the run trains on both; return when Ray has noticed."""
        wait_for_step(self.driver, self.run, 30)
        first = storage.read_json(storage.join(self.run.run_url, "attempts", "attempt-1.json"))
        assert first["world_size"] == 2
        # Where the hosts' names lead, no other host gets through.
        assert first["environment"]["GLOO_SOCKET_IFNAME"] == "eth0"
        host = self._host = first["host"]
        self._nodes.hosts.cut(host)
        self._began = time.time()
        step = max(record["step"] for record in records(self.run))
        self.tell(f"link of host {host} (rank 0) cut; metrics show step {step}", self._began)
        self._wait(lambda: self._nodes.found_dead(host, self._began) is not None)
        found = self._nodes.found_dead(host, self._began)
        self.tell(f"Ray finds host {host} dead", found or 0.0)

    def second_attempt(self) -> dict[str, bytes]:
        """Return once another attempt trains: what the first one had committed by then."""
        self._wait(lambda: bool(_steps_of(self.run, 2)))
        self.tell_attempt(2)
        return _committed(self.run, attempt=1)

    def tell_attempt(self, attempt: int) -> None:
        """Note the first step of an attempt."""
        step = _steps_of(self.run, attempt)[0]
        told = storage.read_json(
            storage.join(self.run.run_url, "attempts", f"attempt-{attempt}.json")
        )
        what = f"attempt {attempt} has trained step {step['step']}, workers: {told['world_size']}"
        self.tell(what, step["time"])

    def come_back(self) -> None:
        """Mend the link, wait for the end of what still ran there, and have the host join again."""
        host = self._host
        left = len(self._nodes.hosts.processes(host))
        self._nodes.hosts.mend(host)
        self.tell(f"link of host {host} mended, where {left} processes are left", time.time())
        self._wait(lambda: not self._nodes.hosts.processes(host), driver_may_end=True)
        self.tell(f"the processes on host {host} have ended by themselves", time.time())
        self._nodes.add(host)
        self.tell(f"host {host} has joined again", time.time())

    def _wait(self, until: Callable[[], bool], driver_may_end: bool = False) -> None:
        """Return once it is so; fail where the driver ends before and may not."""
        while not until():
            if self.driver.poll() is not None:
                assert driver_may_end, self.driver.communicate()[0]
            time.sleep(0.2)


def _steps_of(wanted: Recipe, attempt: int) -> list[dict[str, Any]]:
    """What an attempt has told of its steps."""
    for file in metrics_files(wanted.run_url):
        if file.endswith(f"/attempt-{attempt}.jsonl"):
            return [record for record in read_metrics(file) if "loss" in record]
    return []


def _committed(wanted: Recipe, attempt: int) -> dict[str, bytes]:
    """The files of an attempt's committed checkpoints."""
    places = [place for place in places_in(wanted.run_url) if place.attempt == attempt]
    folders = [place.url(wanted.run_url) for place in places]
    urls = [storage.join(url, name) for url in folders for name in storage.files_below(url)]
    return {url: storage.read_bytes(url) for url in urls}


def _metrics(wanted: Recipe) -> dict[str, float]:
    """What the last validation found."""
    found = [r for r in records(wanted) if "validation/ndcg@10" in r][-1]
    said = {name: value for name, value in found.items() if name.startswith("validation/")}
    return {name.removeprefix("validation/"): value for name, value in said.items()}
