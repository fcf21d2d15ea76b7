"""One event at a time: what the next event of a user costs, and what is kept of him.

    python -m benchmarks.serving [--events 10000] [--threads 1]

Every causal model takes ``--events`` events of one user, and of 64 users at once, through ``step``;
the time of an event is the median over 50 events around each point. SASRec, which keeps the keys of
all events, is given room for as many. Small sizes, fp32, random weights: the cost is the same.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import torch

from benchmarks.report import surroundings, write_result
from models import build, config_of

POINTS = (10, 100, 1000, 10_000)
AROUND = 50
CATALOGUE = 10_000
USERS = (1, 64)


def settings(events: int) -> dict[str, dict[str, Any]]:
    """Small models without absolute positions, where there is such a form."""
    return {
        "lrurec": {},
        "hydrarec": {"positions": "none", "max_history": None},
        "elastic": {"positions": "none", "max_history": None},
        "recgrela": {},
        "sasrec": {"max_history": events},
    }


def measure(name: str, given: dict[str, Any], users: int, events: int) -> tuple[list[float], int]:
    """Microseconds of an event of one user at each point; bytes kept of a user at the end."""
    torch.manual_seed(0)
    model = build(config_of(name)(name=name, **given), CATALOGUE).eval()
    items = torch.randint(1, CATALOGUE + 1, (users,))
    times: dict[int, list[float]] = {point: [] for point in POINTS if point <= events}
    with torch.inference_mode():
        state = model.init_state(users)
        for event in range(1, events + 1):
            began = time.perf_counter()
            _, state = model.step(items, state)
            spent = (time.perf_counter() - began) * 1e6 / users
            for point, found in times.items():
                if max(1, point - AROUND) <= event <= point:
                    found.append(spent)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) // users
    return [statistics.median(found) for found in times.values()], kept


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--events", type=int, default=POINTS[-1])
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    points = [point for point in POINTS if point <= given.events]
    head = " | ".join(f"event {point:,}" for point in points)
    lines = [f"| model | users at once | {head} | bytes kept of a user |"]
    lines.append("| --- | ---: |" + " ---: |" * (len(points) + 1))
    for name, changed in settings(given.events).items():
        for users in USERS:
            if name == "sasrec" and users > 1:
                continue  # it copies the keys of all users at every event
            print(f"{name}, {users} at once", file=sys.stderr)
            times, kept = measure(name, changed, users, given.events)
            cells = " | ".join(f"{value:,.1f}" for value in times)
            lines.append(f"| {name} | {users} | {cells} | {kept:,} |")
    write_result(
        "serving",
        [
            "# One event at a time",
            "",
            *surroundings(given.threads),
            "",
            f"Microseconds an event of a user (median of {AROUND}), small sizes, fp32, without the "
            f"ranking; sasrec keeps room for {given.events:,} events.",
            "",
            *lines,
        ],
    )


if __name__ == "__main__":
    main()
