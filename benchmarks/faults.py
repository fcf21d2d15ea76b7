"""Runs hurt in every way a cluster hurts them, again and again: how many went on as they should.

    python -m benchmarks.faults [--cases 5] [--ray 28] [--seed 0]

Every setting is trained once undisturbed, then ``--cases`` times with faults at random instants of
random ranks, and ``--ray`` times on a Ray cluster of several nodes (tests/faults says which faults
and how). A fault is survived where the run ends with the weights of the undisturbed one, to the
last bit at the same number of workers and to rounding at others, and has trained every segment of
every step once.
"""

import argparse
import os
import random
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.report import surroundings, write_result
from pipeline import storage
from pipeline.manifest import Dataset
from pipeline.progress import bar
from tests.cluster.ray_nodes import RayNodes
from tests.conftest import prepare_histories, random_histories
from tests.faults import ray_campaign
from tests.faults.campaign import AWAY, HARM, PROCESS, SETTINGS, Campaign, Outcome
from tests.faults.ray_campaign import RayCampaign
from tests.faulty_s3 import FaultyS3


def bucket_on(server: FaultyS3) -> str:
    """An empty bucket; child processes find the server by the environment too."""
    os.environ |= server.environment
    fs, _ = storage.filesystem("s3://faults")
    fs.mkdir("faults")
    return "s3://faults"


def main() -> None:
    """Run the campaign and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=5, help="of each setting")
    parser.add_argument("--ray", type=int, default=28, help="runs through Ray")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    outcomes: list[Outcome] = []
    server = FaultyS3()
    with tempfile.TemporaryDirectory() as folder, bar("fault campaign") as progress:
        dataset = prepare_histories(random_histories(300, 50, seed=1), Path(folder, "set"))
        bucket = bucket_on(server)
        # Ray first: it is the longer way, and the one that meets something new.
        outcomes += through_ray(dataset, Path(folder, "ray"), server, bucket, given.ray, given.seed)
        campaign = Campaign(dataset, Path(folder), server, bucket)
        cases = [(setting, case) for case in range(given.cases) for setting in SETTINGS]
        for number, (setting, _) in enumerate(cases):
            seed = given.seed * 10_000 + number
            possible = [*PROCESS, *HARM, *([AWAY] if setting.remote else [])]
            kinds = random.Random(seed).sample(possible, 6)
            outcomes.append(campaign.case(setting, kinds, seed))
            hurt = sum(len(outcome.injected) for outcome in outcomes)
            progress.update(
                number + 1, len(cases), f"{hurt} faults, {_lost(outcomes)} not survived"
            )
    server.stop()
    name = f"faults-seed-{given.seed}" if given.seed else "faults"
    write_result(name, _page(outcomes, given))


def through_ray(
    dataset: Dataset, folder: Path, server: FaultyS3, bucket: str, runs: int, seed: int
) -> list[Outcome]:
    """Runs on a cluster, every kind of fault in turn."""
    if not runs:
        return []
    folder.mkdir()
    nodes = RayNodes(port=26579)
    try:
        with bar("fault campaign on Ray") as progress:
            campaign = RayCampaign(dataset, folder, nodes, server, bucket)
            outcomes = []
            for number in range(runs):
                kind = ray_campaign.KINDS[number % len(ray_campaign.KINDS)]
                outcomes.append(campaign.case(kind, seed * 10_000 + number))
                progress.update(number + 1, runs, f"{_lost(outcomes)} not survived")
            return outcomes
    finally:
        nodes.stop()


def _lost(outcomes: list[Outcome]) -> int:
    return sum(len(outcome.injected) for outcome in outcomes if not outcome.survived)


def _page(outcomes: list[Outcome], given: argparse.Namespace) -> list[str]:
    injected = sum(len(outcome.injected) for outcome in outcomes)
    kinds = Counter(kind for outcome in outcomes for kind in outcome.injected)
    lines = [
        "# Faults",
        "",
        *surroundings(threads=1),
        f"- `python -m benchmarks.faults --cases {given.cases} --ray {given.ray} "
        f"--seed {given.seed}`",
        "",
        f"**{injected - _lost(outcomes)} of {injected} faults survived**, in {len(outcomes)} runs.",
        "",
        "| setting | runs | faults | survived | weights as the undisturbed run's |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for setting in (*SETTINGS, ray_campaign.FIXED, ray_campaign.ELASTIC):
        here = [outcome for outcome in outcomes if outcome.setting.name == setting.name]
        hurt = sum(len(outcome.injected) for outcome in here)
        equal = Counter(outcome.equal for outcome in here)
        lines.append(
            f"| {setting.name} | {len(here)} | {hurt} | {hurt - _lost(here)} | "
            f"{', '.join(f'{count} to {name}' for name, count in equal.items())} |"
        )
    lines += ["", "| fault | times |", "| --- | ---: |"]
    lines += [f"| {kind} | {count} |" for kind, count in sorted(kinds.items())]
    return lines


if __name__ == "__main__":
    main()
