"""Two contenders turn and turn about: targets a second and peak memory."""

import statistics
import sys
from dataclasses import dataclass

from benchmarks.peers.beside import Contest, Pair

_WHO = ("ours", "theirs", "times as much")


@dataclass(frozen=True)
class Measured:
    """Of every turn, ours and theirs; a peak of memory in bytes."""

    pair: Pair
    rates: tuple[list[float], list[float]]
    training: tuple[int, int]
    evaluation: tuple[int, int]

    @property
    def ratios(self) -> list[float]:
        """How many times as fast as they we are, turn by turn."""
        return [ours / theirs for ours, theirs in zip(*self.rates, strict=True)]

    def numbers(self) -> dict[str, float]:
        """Ratios by name, each the better the larger."""
        return {
            f"{self.pair.name}: speed": statistics.median(self.ratios),
            f"{self.pair.name}: memory of training": self.training[1] / self.training[0],
            f"{self.pair.name}: memory of evaluation": self.evaluation[1] / self.evaluation[0],
        }


def measure(contest: Contest, pair: Pair, turns: int, seconds: float) -> Measured:
    """An update each to warm up, then the turns; evaluation in processes that have not trained."""
    with contest.both(pair) as children:
        evaluation = [child.evaluate().memory for child in children]
    rates: tuple[list[float], list[float]] = ([], [])
    with contest.both(pair) as children:
        training = [child.train(0).memory for child in children]  # builds kernels, warms caches
        for turn in range(turns):
            for who, child in enumerate(children):
                answer = child.train(seconds)
                rates[who].append(answer.rate)
                training[who] = max(training[who], answer.memory)
            told = " and ".join(f"{found[-1]:,.0f}" for found in rates)
            print(f"{pair.name}, turn {turn + 1}: {told} targets/s", file=sys.stderr)
    return Measured(pair, rates, (training[0], training[1]), (evaluation[0], evaluation[1]))


def speed_table(found: list[Measured]) -> list[str]:
    """Markdown of targets a second."""
    lines = [
        "| ours / theirs | ours, targets/s | theirs | times as fast | turn by turn | wanted |",
        "| --- | ---: | ---: | ---: | --- | ---: |",
    ]
    for one in found:
        cells = [
            one.pair.name,
            *(f"{statistics.median(rates):,.0f}" for rates in one.rates),
            f"{statistics.median(one.ratios):,.1f}",
            f"{min(one.ratios):,.1f} to {max(one.ratios):,.1f}",
            "" if one.pair.wanted is None else f"{one.pair.wanted:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def memory_table(found: list[Measured]) -> list[str]:
    """Markdown of peak memory."""
    parts = ["ours / theirs"]
    parts += [f"{what}: {who}" for what in ("training", "evaluation") for who in _WHO]
    lines = [f"| {' | '.join(parts)} |", "| --- |" + " ---: |" * 6]
    for one in found:
        cells = [one.pair.name]
        for ours, theirs in (one.training, one.evaluation):
            cells += [f"{ours / 2**20:,.0f} MiB", f"{theirs / 2**20:,.0f} MiB"]
            cells.append(f"{theirs / ours:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
