"""The memory of one rank's part of a sharded table, reckoned from the code beside this file."""

from collections import Counter
from dataclasses import dataclass

import torch

import models
from pipeline.config import Recipe
from pipeline.train.table.dealt import BLOCK_ROWS
from pipeline.train.table.exchange import Deal
from pipeline.train.table.rules import Rule
from pipeline.train.table.softmax import tile_rows


@dataclass(frozen=True)
class TableMemory:
    """Bytes: held throughout, at hand in every moment of a step, beside an update, for the loss,
    and while the table is begun.

    copies: what is kept, in fp32, piece by piece, for a checkpoint; state: of all ranks together.
    """

    held: Counter[str]
    beside: Counter[str]
    update: Counter[str]
    loss: int
    build: Counter[str]
    copies: list[int]
    state: int


def table_memory(recipe: Recipe, items: int, workers: int, fetched: int) -> TableMemory:
    """fetched: rows that a micro-batch has at hand."""
    config, tokens = recipe.train.table, workers * recipe.data.lane_tokens
    full = recipe.train.loss.name == "full_softmax"
    with torch.device("meta"):
        biased = models.build(recipe.model, 1).item_bias is not None
    width = recipe.model.d + biased
    kept = len(Deal(items + 1, workers).held(workers - 1))  # the last rank has the most
    rule = Rule(config.optimizer, recipe.train.optimizer, decayed=recipe.model.d)
    state = 4 * sum(_numel(shape) for shape in rule.shapes(kept, width).values())
    size = 2 if config.storage == "bf16" else 4
    row = 4 * width
    held = Counter(weights=size * width * kept, optimizer=state, gradients=row * kept * full)
    micro = -(-recipe.data.lanes // workers)
    # The rows, their gradients as inputs and as classes with the copy that slicing off the bias
    # makes; the gradients of earlier micro-batches wait for the update.
    beside = Counter(buffers=row * fetched * (1 + micro) * (1 if workers == 1 else 2))
    # squared_norm() joins and sums the gradients of all micro-batches and ranks; update() has a
    # block's rows and state, and three (rule) or, to round, five times as much beside.
    touched = min(kept, fetched * micro)  # a share of what each of the ranks has at hand
    block = min(BLOCK_ROWS, kept if full or rule.all_rows else touched)
    states = state // max(1, kept * row)  # as many rows more
    temporary = 3 if size == 4 else 5
    copied = 0 if full or rule.all_rows else 1 + states
    whole = rule.all_rows and not full  # gradients of a block, mostly zeros
    update = Counter(buffers=row * (2 * touched + block * (temporary + copied + whole)))
    tile = min(kept, tile_rows(tokens))
    # A tile's vectors and their gradients, its scores and their exponentials.
    loss = tile * (row * (2 + (size == 2)) + 8 * tokens)
    # DealtTable.pieces(): vectors and biases of rows, apart.
    shapes = [(kept, width), *rule.shapes(kept, width).values()]
    parts = [[recipe.model.d] + [1] * biased if len(shape) == 2 else [1] for shape in shapes]
    copies = [4 * kept * columns for part in parts for columns in part]
    # _begin_rows(): a block, whatever part of it is kept, and what trunc_normal_ has beside it.
    build = Counter(weights=held["weights"], optimizer=state)
    build += Counter(buffers=17 * BLOCK_ROWS * recipe.model.d)
    return TableMemory(
        held=held,
        beside=beside,
        update=update,
        loss=loss,
        build=build,
        copies=copies,
        state=(row + state // kept) * (items + 1),
    )


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
