"""Peak memory of training and of evaluation on ML-1M, beside each peer.

    python -m benchmarks.memory_peers [--published CHECKOUT] [--rectools PYTHON] [--recbole PYTHON]

What each trains is told in `benchmarks.training_throughput`. Memory is the resident memory of a
contender's processes together, sampled ten times a second: of an evaluation of all users, and in
processes of its own of training for a while. An interpreter with torch loaded is part of it.
"""

import argparse

from benchmarks.peers.beside import add_peers, contest
from benchmarks.peers.measured import measure, memory_table
from benchmarks.report import surroundings, write_result


def main() -> None:
    """Measure and write a dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_peers(parser)
    parser.add_argument("--seconds", type=float, default=20.0, help="of training")
    given = parser.parse_args()
    with contest(given) as here:
        found = [measure(here, pair, 1, given.seconds) for pair in here.pairs]
        lines = [
            "# Memory of training and evaluation, ML-1M",
            "",
            *surroundings(given.threads),
            *here.versions,
            "",
            "Peak resident memory of all of a contender's processes, interpreter and libraries "
            "included.",
            "",
            *memory_table(found),
        ]
    write_result(
        "memory-peers",
        lines,
        {one.pair.name: {"training": one.training, "evaluation": one.evaluation} for one in found},
    )


if __name__ == "__main__":
    main()
