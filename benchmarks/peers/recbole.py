"""RecBole's SASRec by its own trainer: one target a row, every prefix a row of its own.

d = 64, 2 blocks, 1 head, length 200, dropout 0.2, the full softmax (its ``CE``). The trainer's
loop is left as it is; what counts targets stands around the model's loss.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.histories import Histories
from benchmarks.peers.turns import Turns

ROWS = 256  # of one target each, every one with up to 200 events before it


def settings(folder: str) -> dict[str, Any]:
    """What is asked of RecBole."""
    return {
        "data_path": folder,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 200,
        "train_neg_sample_args": None,
        "train_batch_size": ROWS,
        "eval_batch_size": 4096,
        "eval_args": {"split": {"LS": "valid_only"}, "order": "TO", "mode": "full"},
        "hidden_size": 64,
        "inner_size": 64,
        "n_layers": 2,
        "n_heads": 1,
        "hidden_dropout_prob": 0.2,
        "attn_dropout_prob": 0.2,
        "loss_type": "CE",
        "metrics": ["Recall"],
        "topk": [10],
        "valid_metric": "Recall@10",
        "epochs": 10**6,
        "eval_step": 0,
        "use_gpu": False,
        "show_progress": False,
        "save_dataset": False,
        "save_dataloaders": False,
        "checkpoint_dir": folder,
    }


def write_log(histories: Histories, folder: str) -> None:
    """RecBole's atomic file; the place in a history is the time."""
    path = Path(folder) / "log" / "log.inter"
    path.parent.mkdir(parents=True)
    users = np.repeat(np.arange(1, len(histories.offsets)), np.diff(histories.offsets))
    times = np.arange(len(histories.items))
    with path.open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        np.savetxt(file, np.stack([users, histories.items, times], axis=1), fmt="%d\t%d\t%d")


def main() -> None:
    """Train by turns."""
    given = json.loads(sys.argv.pop(1))  # RecBole reads the arguments itself
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer

    folder = tempfile.mkdtemp(dir=given["folder"])
    write_log(Histories.read(given["histories"]), folder)
    config = Config(model="SASRec", dataset="log", config_dict=settings(folder))
    training, validation, _ = data_preparation(config, create_dataset(config))
    torch.set_num_threads(given["threads"])
    model = SASRec(config, training.dataset)
    trainer = Trainer(config, model)

    def evaluate() -> float:
        found = trainer.evaluate(validation, load_best_model=False)["recall@10"]
        model.train()
        return float(found)

    turns, loss_of, rows = Turns(evaluate), model.calculate_loss, 0

    def counted(interaction: Any) -> Any:
        nonlocal rows
        turns.trained(rows)  # of the update before
        rows = len(interaction)
        return loss_of(interaction)

    model.calculate_loss = counted
    trainer.fit(training, saved=False, verbose=False)


if __name__ == "__main__":
    main()
