"""Users a second through a catalogue of a million: ranks and lists, beside plain torch.

    python -m benchmarks.ranking [--users 100000] [--items 1000000] [--k 20]

``longhaul`` is ``rank_targets`` (one target a user) and ``top_k``, as evaluation and recommendation
call them, ``BATCH_USERS`` users at once. ``plain`` does the same with ``hidden @ table.T``, then
counting what is higher, or ``topk``: once by tiles of the same shape, which takes the same memory,
and once over whole rows of all items, for as many users as a tile has. Nothing is masked, and
plain torch breaks ties as it likes. Before, both are held against each other on a few users.

Each round measures every form once, in a fresh process and on users of its own, which together are
``--users``; users a second are medians over rounds, memory is the peak over what the process held
before. Vectors are drawn from a normal distribution: where a model's best items come late in the
table, more of them pass through the lists.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.report import surroundings, write_result
from pipeline.evaluate import TableScores, rank_targets, top_k
from pipeline.evaluate.scores import TILES
from pipeline.recommend.histories import BATCH_USERS

ROUNDS = 4
KS = [20, 100]
Form = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Hidden states ``[n, d]``, table ``[V + 1, d]``, targets ``[n]`` -> ranks ``[n]`` or scores of
lists ``[n, k]``."""


def exact_ranks(hidden: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Ours."""
    return torch.from_numpy(rank_targets(TableScores(hidden, table), targets).pessimistic)


def exact_lists(k: int) -> Form:
    """Ours."""
    return lambda hidden, table, targets: top_k(TableScores(hidden, table), k)[1]


def plain_ranks(width: int | None) -> Form:
    """Counting by tiles of so many items, or over whole rows."""

    def ranks(hidden: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found = []
        for rows, goals in _by_tile(hidden, targets):
            own = (rows * table[goals]).sum(1, keepdim=True)
            higher = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
            for slab in table[1:].split(width or len(table)):
                higher += (rows @ slab.T > own).sum(1)
            found.append(1 + higher)
        return torch.cat(found)

    return ranks


def plain_lists(k: int, width: int | None) -> Form:
    """``topk`` by tiles of so many items, or over whole rows."""

    def lists(hidden: torch.Tensor, table: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found = []
        for rows, _ in _by_tile(hidden, targets):
            best = rows.new_full((len(rows), k), -torch.inf)
            kept = torch.zeros_like(best, dtype=torch.int64)
            first = 1
            for slab in table[1:].split(width or len(table)):
                values, items = (rows @ slab.T).topk(min(k, len(slab)), dim=1)
                best, order = torch.cat([best, values], 1).topk(k, dim=1)
                kept = torch.cat([kept, items + first], 1).gather(1, order)
                first += len(slab)
            found.append(best)
        return torch.cat(found)

    return lists


def _by_tile(
    hidden: torch.Tensor, targets: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    queries = TILES[hidden.device.type][0]
    return list(zip(hidden.split(queries), targets.split(queries), strict=True))


def forms(device: str, ks: list[int]) -> dict[str, dict[str, Form]]:
    """By task and name."""
    width = TILES[device][1]
    found: dict[str, dict[str, Form]] = {
        "rank of a target": {
            "longhaul": exact_ranks,
            "plain, same memory": plain_ranks(width),
            "plain, whole rows": plain_ranks(None),
        }
    }
    for k in ks:
        found[f"best {k}"] = {
            "longhaul": exact_lists(k),
            "plain, same memory": plain_lists(k, width),
            "plain, whole rows": plain_lists(k, None),
        }
    return found


def drawn(
    users: int, items: int, d: int, device: str, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, table and targets; the table is the same for every seed."""
    table = torch.randn(items + 1, d, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1 + seed)
    hidden = torch.randn(users, d, generator=generator)
    targets = torch.randint(1, items + 1, (users,), generator=generator)
    return hidden.to(device), table.to(device), targets.to(device)


def measure(form: Form, given: argparse.Namespace, seed: int) -> dict[str, float]:
    """Users a second and bytes in this process."""
    users = max(1, given.users // ROUNDS)
    hidden, table, targets = drawn(users, given.items, given.d, given.device, seed)
    form(hidden[:1], table[: min(len(table), 10_000)], targets[:1].clamp(max=9000))  # libraries
    if given.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = _memory(given.device)
    began = time.perf_counter()
    for low in range(0, users, BATCH_USERS):
        form(hidden[low : low + BATCH_USERS], table, targets[low : low + BATCH_USERS])
    if given.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {"users": users / seconds, "bytes": _memory(given.device) - before}


def _memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check(given: argparse.Namespace) -> None:
    """All forms of a task say the same, up to the rounding of a product."""
    hidden, table, targets = drawn(200, min(given.items, 20_000), given.d, given.device, 0)
    for task, named in forms(given.device, given.k).items():
        expected, *others = (form(hidden, table, targets).cpu().double() for form in named.values())
        for found in others:
            if task.startswith("rank"):
                # A target's score by itself is not that of the product: it may beat itself.
                assert (found - expected).abs().max() <= 2, f"{task}: ranks differ"
            else:
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def apart(task: str, name: str, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """``measure`` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.ranking", "--one", task, name, str(seed)]
    for option in ("users", "items", "d", "threads", "device"):
        command += [f"--{option}", str(getattr(given, option))]
    command += ["--k", *map(str, given.k)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--k", type=int, nargs="*", default=KS, help="lengths of lists")
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tasks = forms(given.device, given.k)
    if given.one:
        task, name, seed = given.one
        print(json.dumps(measure(tasks[task][name], given, int(seed))))
        return
    check(given)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in range(ROUNDS):
        for task, named in tasks.items():
            for name in named:
                result = apart(task, name, seed, given)
                found.setdefault((task, name), []).append(result)
                told = f"{result['users']:,.0f} users/s, {result['bytes'] / 1e6:,.0f} MB"
                print(f"round {seed + 1}: {task}, {name}: {told}", file=sys.stderr)
    lines = ["| task | form | users/s | rounds | to longhaul's | peak MB |"]
    lines.append("| --- | --- | ---: | --- | ---: | ---: |")
    for (task, name), results in found.items():
        rates = [result["users"] for result in results]
        ours = statistics.median(result["users"] for result in found[task, "longhaul"])
        shown = " ".join(f"{rate:,.0f}" for rate in rates)
        peak = max(result["bytes"] for result in results) / 1e6
        rate = statistics.median(rates)
        lines.append(
            f"| {task} | {name} | {rate:,.0f} | {shown} | {rate / ours:.2f} | {peak:,.0f} |"
        )
    write_result(
        "ranking",
        [
            "# Ranks and lists over a large catalogue, beside plain torch",
            "",
            *surroundings(given.threads),
            f"- device {given.device}",
            "",
            f"{given.users:,} users, {given.items:,} items, d = {given.d}, fp32, in {ROUNDS} "
            "rounds (medians; a fresh process each); memory over table and users:",
            "",
            *lines,
        ],
    )


if __name__ == "__main__":
    main()
