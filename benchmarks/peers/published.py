"""The published LRURec (yueqirex/LRURec): its model, its sample rule, its training step.

Its paper's configuration for ML-1M: d = 64, 2 blocks, length 200, dropout 0.2, 128 rows, AdamW,
clipping at 5. The modules of the checkout are imported as they lie there.
"""

import importlib
import json
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.histories import Histories
from benchmarks.peers.hits import recall
from benchmarks.peers.turns import Turns

LENGTH, ROWS = 200, 128


def modules(checkout: Path) -> tuple[Any, Any]:
    """Of its model and of its samples."""
    package = types.ModuleType("published")
    package.__path__ = [str(checkout / "model"), str(checkout / "dataloader")]
    sys.modules["published"] = package
    warnings.filterwarnings("ignore", message="Complex modules are a new feature")
    return importlib.import_module("published.lru"), importlib.import_module("published.sas")


def updates(model: Any, rows: Any) -> Iterator[int]:
    """One update an iteration; its number of targets, padding not counted."""
    loader: Any = torch.utils.data.DataLoader(rows, batch_size=ROWS, shuffle=True)
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


def main() -> None:
    """Train by turns."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    histories = Histories.read(given["histories"])
    model_file, samples_file = modules(Path(given["checkout"]))
    settings = types.SimpleNamespace(
        num_items=histories.catalogue_size,
        bert_hidden_units=64,
        bert_num_blocks=2,
        bert_dropout=0.2,
        bert_attn_dropout=0.2,
        dataset_code="ml-1m",
    )
    parts = {user: part.tolist() for user, part in enumerate(histories.training())}
    rows = samples_file.SASTrainDataset(settings, parts, LENGTH, 1.0, np.random)
    model = model_file.LRU(settings)

    def evaluate() -> float:
        model.eval()
        found = recall(histories, LENGTH, lambda items: model(items)[0][:, -1].clone())
        model.train()
        return found

    turns = Turns(evaluate)
    turns.trained(0)
    for targets in updates(model, rows):
        turns.trained(targets)


if __name__ == "__main__":
    main()
