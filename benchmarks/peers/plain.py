"""SASRec as a short script would train it: padded batches, torch's modules, cross-entropy.

The floor for everybody: d = 64, 2 blocks, length 200, dropout 0.2, the full softmax at every
position, Adam. Its rows are 128 users' newest 200 events, as published code has them.
"""

import json
import sys
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.histories import Histories, padded
from benchmarks.peers.hits import recall
from benchmarks.peers.turns import Turns

WIDTH, BLOCKS, LENGTH, ROWS, DROPOUT = 64, 2, 200, 128, 0.2


class Plain(nn.Module):
    """Item and position embeddings, torch's own causal encoder, tied output."""

    def __init__(self, catalogue_size: int) -> None:
        super().__init__()
        self.items = nn.Embedding(catalogue_size + 1, WIDTH, padding_idx=0)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        nn.init.normal_(self.items.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            WIDTH, 1, WIDTH, DROPOUT, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, BLOCKS, nn.LayerNorm(WIDTH), False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """``[rows, LENGTH]`` -> hidden ``[rows, LENGTH, WIDTH]``."""
        x = self.items(items) + self.positions.weight
        hidden: torch.Tensor = self.encoder(
            functional.dropout(x, DROPOUT, self.training), mask=self.mask, is_causal=True
        )
        return hidden


def updates(model: Plain, histories: Histories) -> Iterator[int]:
    """One update an iteration; its number of targets. Goes on for ever."""
    rows = torch.from_numpy(padded(histories.training(), LENGTH + 1))
    dataset = torch.utils.data.TensorDataset(rows)
    loader = torch.utils.data.DataLoader(dataset, batch_size=ROWS, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    while True:
        for (batch,) in loader:
            inputs = batch[:, :-1]
            targets = torch.where(inputs > 0, batch[:, 1:], 0)
            optimizer.zero_grad()
            scores = model(inputs) @ model.items.weight.T
            loss = functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=0)
            loss.backward()
            optimizer.step()
            yield int((targets > 0).sum())


def main() -> None:
    """Train by turns."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    histories = Histories.read(given["histories"])
    model = Plain(histories.catalogue_size)

    def evaluate() -> float:
        model.eval()
        found = recall(histories, LENGTH, lambda x: model(x)[:, -1] @ model.items.weight.T)
        model.train()
        return found

    turns = Turns(evaluate)
    turns.trained(0)
    for targets in updates(model, histories):
        turns.trained(targets)


if __name__ == "__main__":
    main()
