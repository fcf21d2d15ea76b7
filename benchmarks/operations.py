"""What running on clusters looks like: transcripts of runs that are hurt and end as they should.

    python -m benchmarks.operations [--only ray slurm hosts]

One run is trained undisturbed. It is then trained again through ``ray job submit`` on a cluster of
three nodes, one of which is lost; on a SLURM of two nodes, through time limits and requeues; and on
hosts whose network is cut. Each must end in the metrics of the undisturbed one. SLURM and the hosts
need root.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from benchmarks.report import surroundings, write_result
from pipeline import storage
from pipeline.config import Recipe, load_recipe
from pipeline.train.run import read_state
from tests.cluster.cut_host import CutHosts
from tests.cluster.hosts import Hosts
from tests.cluster.ray_hosts import RayHosts
from tests.cluster.ray_nodes import RayNodes
from tests.conftest import prepare_histories, random_histories
from tests.faulty_s3 import FaultyS3
from tests.train.runs import ROOT, digests, environment, wait_for_step, wait_until

STEPS = 4_000
METRICS = ("hr@10", "ndcg@10", "mrr")
_BIN = Path(sys.executable).parent
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Transcript:
    """Commands, what they said, and when (seconds since the start)."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[str] = []
        self._folder = folder
        self._began = time.monotonic()

    def note(self, text: str) -> None:
        """Something that happened beside the commands."""
        self._add(f"# {text}")

    def run(self, command: str, env: dict[str, str], quiet: bool = False) -> str:
        """Run a command to its end; its output, which ``quiet`` keeps out of the transcript."""
        self._add(f"$ {command}")
        ended = subprocess.run(
            command, shell=True, env=env, cwd=self._folder, text=True, capture_output=True
        )
        said = ended.stdout + ended.stderr
        if not quiet:
            self.lines += [line.rstrip() for line in said.strip().splitlines()]
        if ended.returncode:
            self._add(f"exit code {ended.returncode}")
        return ended.stdout

    def start(self, command: str, env: dict[str, str]) -> "subprocess.Popen[str]":
        """Start a command that ends later."""
        self._add(f"$ {command} &")
        return subprocess.Popen(
            command,
            shell=True,
            env=env,
            cwd=self._folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def end(self, process: "subprocess.Popen[str]", shown: Callable[[str], bool]) -> None:
        """Wait for it; the lines of its output that are ``shown``."""
        said, _ = process.communicate()
        self._add(f"# ended with exit code {process.returncode}, having said:")
        plain = _COLOURS.sub("", said).splitlines()
        self.lines += [line.rstrip() for line in plain if shown(line)]

    def _add(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(f"[{time.monotonic() - self._began:6.1f}] {line}")

    def block(self) -> list[str]:
        """The transcript as Markdown; paths into this checkout begin at its root."""
        return ["```", *(line.replace(f"{ROOT}/", "") for line in self.lines), "```"]


class Undisturbed:
    """A recipe on a synthetic log in ``folder``, and the run of it that nothing hurts.

    file: the recipe's. env: the environment of commands. run: trained when it is asked for first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "recipe.yaml"
        self.env = environment(PATH=f"{_BIN}:{os.environ['PATH']}", COLUMNS="100")

    @cached_property
    def run(self) -> Recipe:
        self._do("longhaul synth log --users 2000 --items 500 --events 60000")
        self._do("longhaul prepare log/events.parquet --output data --timestamp timestamp")
        changes = [
            *("name=whole", f"data.path={self.folder}/data", f"runs={self.folder}/runs"),
            *(f"train.steps={STEPS}", "train.checkpoint_every=100", "train.validation=null"),
            "train.log_every=1",  # a line covers the steps since the one before, in its attempt
            *("data.lanes=3", "data.lane_tokens=512"),
            *("train.precision=fp32", "placement.threads=1"),
        ]
        wanted = load_recipe(str(ROOT / "configs" / "demo.yaml"), changes)
        self.file.write_text(wanted.to_yaml())
        self._do(f"longhaul train {self.file} placement.workers=1 placement.launcher=alone")
        return wanted

    def _do(self, command: str) -> None:
        line = shlex.split(command)
        subprocess.run(line, cwd=self.folder, env=self.env, check=True, capture_output=True)


def beside(whole: dict[str, float], run: dict[str, float]) -> list[str]:
    """The metrics of the undisturbed run and of this one, as a table."""
    rows = [f"| {name} | {whole[name]:.5f} | {run[name]:.5f} |" for name in METRICS]
    return ["| metric | undisturbed | this run |", "| --- | ---: | ---: |", *rows]


def judged(transcript: Transcript, run: Recipe, whole: Undisturbed) -> list[str]:
    """The metrics of both runs, side by side. Raises AssertionError where they differ."""
    found = []
    for one in (whole.run, run):
        said = transcript.run(f"longhaul evaluate {one.run_url} --json", whole.env, quiet=True)
        found.append(json.loads(said)[0]["result"]["metrics"])
    state = read_state(run.run_url)
    assert state is not None
    assert state.state == "done"
    assert digests(run) == digests(whole.run), "other segments were trained"
    for name in METRICS:
        assert abs(found[0][name] - found[1][name]) < 2e-3, name
    told = f"{state.attempt} attempts; every step trained the segments that it trains undisturbed."
    return [told, "", *beside(*found)]


def on_ray(whole: Undisturbed) -> list[str]:
    """A job on three nodes, one of which is lost while it trains."""
    run = whole.run.model_copy(update={"name": "on-ray"})
    nodes = RayNodes(port=26779, dashboard=28365, env=whole.env)
    try:
        for name in ("a", "b", "c"):
            nodes.add(name)
        env = nodes.env
        transcript = Transcript(ROOT)
        transcript.run("ray status", env)
        job = transcript.start(
            "ray job submit --submission-id on-ray --working-dir . -- "
            f"longhaul train {whole.file} name=on-ray placement.workers=[1,3]",
            env,
        )
        wait_for_step(job, run, STEPS // 3)
        transcript.run(f"longhaul status {run.run_url}", env)
        nodes.lose("c")
        transcript.note("node c is gone, with the worker on it")
        transcript.end(job, lambda line: "SUCC" in line or line.startswith("run "))
        transcript.run(f"longhaul status {run.run_url}", env)
        return [*judged(transcript, run, whole), "", *transcript.block()]
    finally:
        nodes.stop()


def on_slurm(whole: Undisturbed) -> list[str]:
    """A job that runs into its time limit, is requeued, and goes on."""
    run = whole.run.model_copy(update={"name": "on-slurm"})
    script, folder = ROOT / "cluster" / "slurm" / "local_cluster.sh", whole.folder / "slurm"
    env = whole.env | {"SLURM_CONF": f"{folder}/slurm.conf"}
    transcript = Transcript(whole.folder)
    transcript.run(f"{script} start {folder}", env, quiet=True)
    try:
        spec = {
            "nodes": 2,
            "time_limit": "4m",
            "slurm": {
                "shared_nodes": True,
                "warn_before": "100s",
                "setup": [f"export PATH={_BIN}:$PATH PYTHONPATH={ROOT}"],
            },
        }
        (whole.folder / "slurm.yaml").write_text(json.dumps(spec))
        transcript.run("sinfo", env)
        launch = transcript.start(
            f"longhaul launch slurm {whole.file} --cluster slurm.yaml --wait name=on-slurm", env
        )
        wait_for_step(launch, run, 1)
        transcript.run("squeue --format='%.6i %.12j %.10T %.10M %.10l %R'", env)

        def preempted() -> bool:
            state = read_state(run.run_url)
            return state is not None and state.state == "preempted"

        wait_until(preempted, launch)
        transcript.run(f"longhaul status {run.run_url}", env)
        transcript.run("squeue --format='%.6i %.12j %.10T %.20S %R'", env)
        transcript.end(launch, bool)
        transcript.run(f"longhaul status {run.run_url}", env)
        return [*judged(transcript, run, whole), "", *transcript.block()]
    finally:
        subprocess.run([script, "stop", folder], check=True, capture_output=True)


def on_hosts(whole: Undisturbed) -> list[str]:
    """Two runs on three hosts that share nothing but a network, on which one is cut off.

    They have an undisturbed run of their own, in that bucket.
    """
    folder = whole.folder / "hosts"
    folder.mkdir()
    lines = [
        "Hosts are network namespaces, each with a Ray node; data and runs are in a bucket on "
        "their network. Ray's head asks its nodes every second here. Seconds after the cut:"
    ]
    with Hosts(folder, "head", "a", "b") as hosts:
        server = FaultyS3(hosts.gateway)
        os.environ |= server.environment
        storage.filesystem("s3://hosts")[0].mkdir("hosts")
        dataset = prepare_histories(random_histories(300, 50, seed=1), folder / "set")
        try:
            with RayHosts(hosts, "a", "b") as nodes:
                runs = CutHosts(dataset, folder, nodes, "s3://hosts")
                for title, act in (("[1, 2]", runs.goes_on), ("2", runs.waits)):
                    story = act()
                    assert story.state.state == "done"
                    assert story.exactly_once
                    assert not story.overwritten
                    assert story.equal in ("bits", "rounding")
                    events = [f"[{when:6.1f}] {what}" for when, what in story.events]
                    lines += ["", f"`placement.workers: {title}`", "", "```", *events, "```", ""]
                    lines.append(f"Weights: equal to {story.equal}. Every segment exactly once.")
                    lines += ["", *beside(runs.metrics, story.metrics)]
        finally:
            server.stop()
    return lines


PARTS = {
    "ray": ("`ray job submit` on three nodes, one of them lost", on_ray),
    "slurm": ("SLURM: time limit, requeue, resume", on_slurm),
    "hosts": ("Three hosts: a link cut, resume", on_hosts),
}


def main() -> None:
    """Run the parts and write a dated result of each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    wanted = parser.parse_args().only
    with tempfile.TemporaryDirectory() as made:
        whole = Undisturbed(Path(made))
        for part in wanted:
            title, act = PARTS[part]
            lines = [f"# {title}", "", *surroundings(threads=2)]
            lines += [f"- `python -m benchmarks.operations --only {part}`", "", *act(whole)]
            write_result(f"operations-{part}", lines)


if __name__ == "__main__":
    main()
