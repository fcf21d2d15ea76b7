"""What one more event costs a server: events a second, and how time adds up as histories grow.

    python -m benchmarks.stepping [--events 2048] [--threads 1]

First LRURec (d = 64) in batches of 1, 64 and 1,024 users at once: the bare step of the model
(``step``), the prepared one, and the whole update of a recommender, from keys of users and items to
states put back into their slots. Then one user's events one at a time through every causal model,
and through SASRec as its paper serves it, encoding the newest 200 or all events anew at each:
cumulative time over events, as a picture (after figure 1 of the LRURec paper).
Small sizes, fp32, random weights: the cost is the same.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib.figure
import numpy as np
import torch

from benchmarks.report import RESULTS, surroundings, write_result
from models import PackedBatch, SequentialModel, build, config_of
from pipeline.serve.config import ServingConfig
from pipeline.serve.keys import ItemKeys, Key
from pipeline.serve.model import ServedModel
from pipeline.serve.recommender import Recommender

CATALOGUE = 10_000
USERS = (1, 64, 1024)
SECONDS, ROUNDS, PASSES = 1.0, 5, 3
MODELS: dict[str, dict[str, Any]] = {
    "lrurec": {},
    "hydrarec": {"positions": "none", "max_history": None},
    "elastic": {"positions": "none", "max_history": None},
    "recgrela": {},
}
WINDOWS = (200, None)  # of SASRec encoded anew; None: all events


def made(name: str, **settings: Any) -> SequentialModel:
    """A model with random weights."""
    torch.manual_seed(0)
    return build(config_of(name)(name=name, **settings), CATALOGUE).eval()


def served(model: SequentialModel) -> ServedModel:
    """The model with integer keys."""
    keys = ItemKeys(np.arange(1, CATALOGUE + 1))
    return ServedModel(model, keys, ServingConfig(), model.max_history, masks=False, hash="")


def microseconds(act: Callable[[], object], events: int, seconds: float) -> float:
    """Of an event, where ``act`` takes ``events`` of them: the median of a few rounds."""
    act()
    times = []
    for _ in range(ROUNDS):
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds / ROUNDS:
            act()
            done += events
        times.append((time.perf_counter() - began) * 1e6 / done)
    return statistics.median(times)


def batches(seconds: float) -> list[str]:
    """A Markdown table of LRURec's step and update by batch size."""
    lines = [
        "| users at once | step | prepared step | update of a recommender | events a second |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for users in USERS:
        print(f"lrurec, {users} at once", file=sys.stderr)
        model = made("lrurec")
        items = torch.randint(1, CATALOGUE + 1, (users,))
        state = model.init_state(users)
        prepared = model.prepared_step()
        recommender = Recommender(served(model))
        names: list[Key] = [f"user-{user}" for user in range(users)]
        recommender.start({name: [] for name in names})
        keys: list[Key] = items.tolist()
        with torch.inference_mode():
            bare = microseconds(partial(model.step, items, state), users, seconds)
            folded = microseconds(partial(prepared, items, state), users, seconds)
        whole = microseconds(partial(recommender.update, names, keys), users, seconds)
        lines.append(
            f"| {users:,} | {bare:.1f} | {folded:.1f} | {whole:.1f} | {1e6 / whole:,.0f} |"
        )
    return lines


def one_at_a_time(start: Callable[[], Callable[[int], object]], events: int) -> np.ndarray:
    """Seconds after each of ``events`` events, ``[events]``: each event's median of ``PASSES``.

    ``start`` makes what takes the events anew. Two go before, uncounted.
    """
    taken = np.empty((PASSES, events))
    for times in taken:
        step = start()
        for event in range(-2, events):
            began = time.perf_counter()
            step(event % CATALOGUE)
            if event >= 0:
                times[event] = time.perf_counter() - began
    cumulative: np.ndarray = np.median(taken, axis=0).cumsum()
    return cumulative


def updating(model: SequentialModel) -> Callable[[int], object]:
    """A recommender's update of one user, who is new."""
    recommender = Recommender(served(model))
    recommender.start({0: []})
    return lambda event: recommender.update(0, 1 + event)


def encoding(model: SequentialModel, window: int | None) -> Callable[[int], object]:
    """All of one user's newest events through the model, at each."""
    history: list[int] = []

    def encode(event: int) -> None:
        history.append(1 + event)
        items = torch.tensor(history[-window:] if window else history)
        offsets = torch.tensor([0, len(items)])
        with torch.inference_mode():
            model.encode(PackedBatch(items, offsets, torch.zeros_like(items)))

    return encode


def curves(events: int) -> dict[str, np.ndarray]:
    """Cumulative seconds by what takes the events."""
    found: dict[str, np.ndarray] = {}
    # SASRec also one event at a time, with keys and values kept of all.
    for name, settings in (MODELS | {"sasrec": {"max_history": events + 2}}).items():
        print(f"{name}, one at a time", file=sys.stderr)
        found[name] = one_at_a_time(partial(updating, made(name, **settings)), events)
    for window in WINDOWS:
        label = f"sasrec, {f'newest {window}' if window else 'all'} anew"
        print(label, file=sys.stderr)
        model = made("sasrec", max_history=window or events + 2)
        found[label] = one_at_a_time(partial(encoding, model, window), events)
    return found


def straightness(times: np.ndarray) -> float:
    """Time of the second half of the events over that of the first: 1 for a straight line."""
    half = times[len(times) // 2 - 1]
    return float((times[-1] - half) / half)


def picture(found: dict[str, np.ndarray], path: str) -> None:
    """Cumulative time over events."""
    figure = matplotlib.figure.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, times in found.items():
        style = "--" if name.startswith("sasrec") else "-"
        axes.plot(np.arange(1, len(times) + 1), times, style, label=name)
    axes.set_xlabel("events of one user, one at a time")
    axes.set_ylabel("seconds in all")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--events", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a measurement")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    table = batches(given.seconds)
    found = curves(given.events)
    RESULTS.mkdir(exist_ok=True)
    picture(found, str(RESULTS / "stepping.png"))
    lines = [
        f"| model | {given.events:,} events, seconds | an event, microseconds | second half over "
        "first |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, times in found.items():
        lines.append(
            f"| {name} | {times[-1]:.2f} | {times[-1] * 1e6 / len(times):,.0f} | "
            f"{straightness(times):.2f} |"
        )
    write_result(
        "stepping",
        [
            "# One more event",
            "",
            *surroundings(given.threads),
            "",
            "LRURec, d = 64, two blocks, fp32: microseconds an event, median of "
            f"{ROUNDS} rounds; the recommender's update takes keys and keeps states and histories.",
            "",
            *table,
            "",
            "One user's events one at a time (after figure 1 of the LRURec paper): every causal "
            "model through a recommender (SASRec keeps the keys of all events), and SASRec by "
            "encoding its window anew, without a recommender's own work; each event's median of "
            f"{PASSES} passes.",
            "",
            *lines,
            "",
            "![cumulative time over events](stepping.png)",
        ],
    )


if __name__ == "__main__":
    main()
