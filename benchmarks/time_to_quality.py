"""How long longhaul trains for the Recall@10 that a peer reaches in N minutes, on ML-1M.

    python -m benchmarks.time_to_quality [--minutes 45] [--every 300] [--published CHECKOUT]
        [--rectools PYTHON] [--recbole PYTHON] [--kept FILE]

What each trains is told in `benchmarks.training_throughput`. Peer and longhaul train turn and turn
about, at a constant rate, and are evaluated after each turn, which the clock leaves out: validation
items, full ranking, items of the history are no candidates. A peer's turn is ``--every`` seconds,
as some take a minute to evaluate, ours a twentieth of that. The peer goes on for N minutes; what
counts is its best and when it had it. longhaul pauses while it is ahead, and goes on for at most as
long as the peer. Pairs that were raced are kept in ``--kept`` and are not raced again: the peers'
hours can be had in parts.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.peers.beside import Contender, Contest, Pair, add_peers, contest
from benchmarks.report import surroundings, write_result

OUR_TURNS = 20  # for one of the peer

Point = tuple[float, float]
"""Seconds of training, Recall@10 after them."""


@dataclass(frozen=True)
class Reached:
    """How ours and theirs rose."""

    pair: str
    ours: list[Point]
    theirs: list[Point]


def best(curve: Sequence[Point]) -> Point:
    """The first of the highest points."""
    return max(curve, key=lambda point: (point[1], -point[0]))


def first_at(curve: Sequence[Point], recall: float) -> float | None:
    """Seconds until the curve is at ``recall``; None where it never is."""
    return next((seconds for seconds, found in curve if found >= recall), None)


def raced(contest: Contest, pair: Pair, minutes: float, every: float) -> Reached:
    """Train both."""
    ours: list[Point] = []
    theirs: list[Point] = []
    with contest.both(pair) as (mine, other):
        mine.train(0)  # one update, so that no kernel is built under the clock
        other.train(0)
        while not theirs or theirs[-1][0] < 60 * minutes:
            _go_on(other, theirs, every)
            while first_at(ours, best(theirs)[1]) is None and _spent(ours) < _spent(theirs):
                _go_on(mine, ours, every / OUR_TURNS)
            print(f"{pair.name}: {ours[-1]} and {theirs[-1]}", file=sys.stderr)
        while first_at(ours, best(theirs)[1]) is None and _spent(ours) < _spent(theirs):
            _go_on(mine, ours, every / OUR_TURNS)
    return Reached(pair.name, ours, theirs)


def _spent(curve: Sequence[Point]) -> float:
    return curve[-1][0] if curve else 0.0


def _go_on(child: Contender, curve: list[Point], seconds: float) -> None:
    took = child.train(seconds).found["seconds"]
    recall = child.evaluate().found["recall"]
    curve.append((round(_spent(curve) + took, 1), recall))


def row(found: Reached) -> str:
    """Its line of the table."""
    seconds, recall = best(found.theirs)
    needed = first_at(found.ours, recall)
    cells = [found.pair, f"{recall:.4f}".removeprefix("0"), f"{seconds:,.0f} s"]
    if needed is None:
        cells += [f"not in {_spent(found.ours):,.0f} s", ""]
    else:
        cells += [f"{needed:,.0f} s", f"{seconds / needed:.1f}"]
    return f"| {' | '.join(cells)} |"


def races(contest: Contest, minutes: float, every: float, kept: Path) -> list[Reached]:
    """All pairs; those that ``kept`` has as it has them."""
    known = json.loads(kept.read_text()) if kept.exists() else {}
    done = known.setdefault(f"{minutes:g} minutes, every {every:g} s", {})
    for pair in contest.pairs:
        if pair.peer != "plain" and pair.name not in done:
            done[pair.name] = asdict(raced(contest, pair, minutes, every))
            kept.write_text(json.dumps(known))
    return [Reached(**found) for found in done.values()]


def main() -> None:
    """Measure and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_peers(parser)
    parser.add_argument("--minutes", type=float, default=45.0, help="of the peer's training")
    parser.add_argument("--every", type=float, default=300.0, help="seconds of a peer's turn")
    parser.add_argument("--kept", type=Path, default=Path("time-to-quality.json"))
    given = parser.parse_args()
    with contest(given) as here:
        found = races(here, given.minutes, given.every, given.kept)
        lines = [
            "# Time to equal quality, ML-1M",
            "",
            *surroundings(given.threads),
            *here.versions,
            "",
            f"Recall@10 of the validation items at its best in {given.minutes:g} minutes of the "
            "peer's training, when it was there, and when longhaul was. The peer is evaluated "
            f"every {given.every:g} s of training, longhaul every {given.every / OUR_TURNS:g}, "
            "which bounds how well a time is known.",
            "",
            "| ours / theirs | Recall@10 | theirs after | ours after | times as quick |",
            "| --- | ---: | ---: | ---: | ---: |",
            *(row(one) for one in found),
        ]
    write_result("time-to-quality", lines, {one.pair: asdict(one) for one in found})


if __name__ == "__main__":
    main()
