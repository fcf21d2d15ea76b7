"""RecTools' SASRec by its own model and Lightning's trainer.

d = 64, 2 blocks, 1 head, length 200, dropout 0.2, the full softmax at every position, 128 rows.
"""

import json
import sys
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.peers.histories import Histories
from benchmarks.peers.turns import Turns


def main() -> None:
    """Train by turns."""
    given = json.loads(sys.argv[1])
    from pytorch_lightning import Callback, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    histories = Histories.read(given["histories"])
    users = np.repeat(np.arange(len(histories.offsets) - 1), np.diff(histories.offsets) - 1)
    items = np.concatenate(histories.training())
    events = pd.DataFrame(
        {
            Columns.User: users,
            Columns.Item: items,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(np.arange(len(items)), unit="s"),
        }
    )
    dataset = Dataset.construct(events)
    wanted = dict(enumerate(histories.targets().tolist()))

    def evaluate() -> float:
        was_fitted, model.is_fitted = model.is_fitted, True
        module = model.lightning_model
        found = model.recommend(
            users=np.fromiter(wanted, dtype=np.int64), dataset=dataset, k=10, filter_viewed=True
        )
        model.is_fitted = was_fitted
        module.train()
        hits = found[Columns.Item].to_numpy() == found[Columns.User].map(wanted).to_numpy()
        return float(hits.sum()) / len(wanted)

    class ByTurns(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            turns.trained(0)

        def on_train_batch_end(
            self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
        ) -> None:
            turns.trained(int((batch["y"] != 0).sum()))

    def trainer() -> Any:
        return Trainer(
            accelerator="cpu",
            max_epochs=10**6,
            callbacks=[ByTurns()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = SASRecModel(
        n_factors=64,
        n_blocks=2,
        n_heads=1,
        session_max_len=200,
        dropout_rate=0.2,
        loss="softmax",
        lr=1e-3,
        batch_size=128,
        get_trainer_func=trainer,
    )
    turns = Turns(evaluate)
    torch.set_num_threads(given["threads"])
    model.fit(dataset)


if __name__ == "__main__":
    main()
