"""LRURec's training speed end to end, ML-1M, beside the published code in the same process.

    python -m benchmarks.training_throughput --published PATH/TO/LRURec [--data FOLDER]

Both train the paper's configuration (d = 64, 2 blocks, length 200, full softmax over 3,416 items,
dropout 0.2, AdamW, clipping) on the same training parts, from reading to update, in fp32, turn and
turn about. A target is a real one: the published code computes padding too, which does not count.
Ours takes two micro-batches of 8,192 tokens a step, theirs 128 rows of 200, about as many targets.
"""

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import surroundings, write_result
from benchmarks.updates import rate, updates
from pipeline.config import load_recipe
from pipeline.manifest import Dataset, open_dataset
from pipeline.member import TRAIN_END
from pipeline.prepare import PrepareOptions, prepare
from pipeline.world import use_threads

LENGTH, ROWS = 200, 128
RECIPE = Path(__file__).parents[1] / "configs" / "ml-1m" / "lrurec.yaml"


def published(checkout: Path, dataset: Dataset) -> Iterator[int]:
    """The same with the published model, sample rule and training step."""
    package = types.ModuleType("published")
    package.__path__ = [str(checkout / "model"), str(checkout / "dataloader")]
    sys.modules["published"] = package
    warnings.filterwarnings("ignore", message="Complex modules are a new feature")
    model_file = importlib.import_module("published.lru")
    data_file = importlib.import_module("published.sas")
    settings = types.SimpleNamespace(
        num_items=dataset.manifest.catalogue_size,
        bert_hidden_units=64,
        bert_num_blocks=2,
        bert_dropout=0.2,
        bert_attn_dropout=0.2,
        dataset_code="ml-1m",
    )
    rows = data_file.SASTrainDataset(settings, _training_parts(dataset), LENGTH, 1.0, np.random)
    loader = torch.utils.data.DataLoader(rows, batch_size=ROWS, shuffle=True)
    model = model_file.LRU(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-9, weight_decay=0.01)
    loss_of = torch.nn.CrossEntropyLoss(ignore_index=0)
    while True:
        for tokens, labels in loader:
            optimizer.zero_grad()
            scores = model(tokens)[0]
            loss = loss_of(scores.view(-1, scores.size(-1)), labels.view(-1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            yield int((labels > 0).sum())


def _training_parts(dataset: Dataset) -> dict[int, list[int]]:
    parts: dict[int, list[int]] = {}
    for number in range(len(dataset)):
        member = dataset.read(number)
        ends = member.splits[:, TRAIN_END]
        for begin, end in zip(member.offsets[:-1].tolist(), ends.tolist(), strict=True):
            parts[len(parts)] = member.items[begin : begin + end].tolist()
    return parts


def main() -> None:
    """Measure and write a dated result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, help="a checkout of yueqirex/LRURec")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("LONGHAUL_TEST_DATA", "../shared/data"))
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        log = arguments.data / "ml-1m.txt"
        prepare(PrepareOptions(inputs=[str(log)], output=f"{folder}/set"))
        dataset = open_dataset(f"{folder}/set")
        recipe = load_recipe(str(RECIPE), [f"data.path={folder}/set", "data.lanes=2"])
        contenders: dict[str, Callable[[], Iterator[int]]] = {
            "longhaul": lambda: updates(recipe, dataset)
        }
        if arguments.published and str(arguments.published) != ".":
            contenders["published"] = lambda: published(arguments.published, dataset)
        running = {name: start() for name, start in contenders.items()}
        rates: dict[str, list[float]] = {name: [] for name in running}
        for contender in running.values():
            next(contender)  # builds kernels, warms caches
        for turn in range(arguments.turns):
            for name, contender in running.items():
                rates[name].append(rate(contender, arguments.seconds))
                print(f"turn {turn + 1}: {name} {rates[name][-1]:,.0f} targets/s", flush=True)
    lines = [
        "# Training throughput: LRURec, ML-1M",
        "",
        *surroundings(threads=arguments.threads),
        "",
        "fp32; d = 64, 2 blocks, length 200, full softmax over 3,416 items; from reading to "
        "update; turn and turn about in one process.",
        "",
        "| code | targets/s, median | all turns |",
        "| --- | --- | --- |",
    ]
    for name, found in rates.items():
        turns = ", ".join(f"{value:,.0f}" for value in found)
        lines.append(f"| {name} | {statistics.median(found):,.0f} | {turns} |")
    if "published" in rates:
        ratios = [a / b for a, b in zip(rates["longhaul"], rates["published"], strict=True)]
        lines += ["", f"Median of the ratios, turn by turn: {statistics.median(ratios):.1f}"]
    write_result("training-throughput", lines)


if __name__ == "__main__":
    main()
