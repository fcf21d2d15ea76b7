"""The quick set of `make bench`: speed and memory beside what is there, compared with the record.

    python -m benchmarks.bench [--published CHECKOUT] [--rectools PYTHON] [--recbole PYTHON]
        [--record]

A few minutes. Beside the short loop in plain torch always, beside peers where their environments
are given. Ratios do not depend on a machine as times do: where one has dropped by more than a
fifth below what lies in `benchmarks/recorded`, the exit status is 1. ``--record`` writes today's
there instead: on a machine that does nothing else.
"""

import argparse

from benchmarks.peers.beside import add_peers, contest
from benchmarks.peers.measured import measure, memory_table, speed_table
from benchmarks.recording import RECORDED, compare, recorded_ratios
from benchmarks.report import surroundings, write_json, write_result


def main() -> None:
    """Measure, write a dated result, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_peers(parser)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="keep the ratios as the record")
    given = parser.parse_args()
    recorded = recorded_ratios()
    with contest(given) as here:
        found = [measure(here, pair, given.turns, given.seconds) for pair in here.pairs]
        versions = here.versions
    ratios = {name: ratio for one in found for name, ratio in one.numbers().items()}
    compared = compare(ratios, recorded)
    dropped = [one.name for one in compared if one.dropped]
    lines = [
        "# Quick benchmarks, ML-1M",
        "",
        *surroundings(given.threads),
        *versions,
        "",
        "What is trained is told in `benchmarks.training_throughput`, memory in "
        "`benchmarks.memory_peers`.",
        "",
        *speed_table(found),
        "",
        *memory_table(found),
        "",
        "Theirs over ours, the larger the better:",
        "",
        "| ratio | recorded | found | |",
        "| --- | ---: | ---: | --- |",
        *(one.row() for one in compared),
    ]
    write_result("bench", lines, ratios)
    if given.record:
        write_json(RECORDED / "bench.json", ratios)
        print(f"recorded in {RECORDED / 'bench.json'}")
    elif dropped:
        raise SystemExit(f"dropped by more than a fifth: {', '.join(dropped)}")


if __name__ == "__main__":
    main()
