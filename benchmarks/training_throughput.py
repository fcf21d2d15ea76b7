"""Training speed end to end on ML-1M, beside each peer in turn: A B A B, each in its own process.

    python -m benchmarks.training_throughput [--published CHECKOUT] [--rectools PYTHON]
        [--recbole PYTHON] [--turns 5] [--seconds 12]

All train d = 64, 2 blocks, length 200, dropout 0.2, the full softmax over 3,416 items, in fp32,
from reading to update: LRURec beside its published code, SASRec beside RecTools' and RecBole's, and
both beside a short loop in plain torch (SASRec too). A target is a real one: padding, which peers
compute too, does not count. Ours takes two micro-batches of 8,192 tokens a step, theirs 128 rows of
200, about as many targets; RecBole one target a row.
"""

import argparse

from benchmarks.peers.beside import add_peers, contest
from benchmarks.peers.measured import measure, speed_table
from benchmarks.report import surroundings, write_result


def main() -> None:
    """Measure and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_peers(parser)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    with contest(given) as here:
        found = [measure(here, pair, given.turns, given.seconds) for pair in here.pairs]
        lines = [
            "# Training throughput, ML-1M",
            "",
            *surroundings(given.threads),
            *here.versions,
            "",
            "fp32; d = 64, 2 blocks, length 200, full softmax over 3,416 items; from reading to "
            f"update; {given.turns} turns each of at least {given.seconds:g} s, medians.",
            "",
            *speed_table(found),
        ]
    write_result(
        "training-throughput",
        lines,
        {one.pair.name: {"ours": one.rates[0], "theirs": one.rates[1]} for one in found},
    )


if __name__ == "__main__":
    main()
