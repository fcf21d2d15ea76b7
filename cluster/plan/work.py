"""The work of one worker in a step, by part: operations, bytes through memory, launches.

Products and passes are different kernels, most of them one after the other, so their times add up.
Each number of passes below counts how often the code reads or writes a tensor.
"""

from dataclasses import dataclass, fields

import torch

import models
from cluster.plan.counts import Counts
from models.ops.softmax import MOST_TRITON_WIDTH, cpu
from models.sizes import linear_flops
from pipeline.config import Recipe
from pipeline.stream.order import micro_steps
from pipeline.train.activations import activation_bytes

# Of an activation that is kept: written, read by the next operation and in the backward pass; its
# gradient written and read.
_ACTIVATION_PASSES = 5
_LOGIT_PASSES = 6  # where scores lie in memory: made, exponentiated in place, read by two products
_TILE_PASSES = 8  # of the sharded softmax: made twice, summed up, exponentiated, read by products
_LAUNCHES_A_BLOCK, _LAUNCHES_BESIDE = 60, 60  # of forward and backward
_ADAMW_BYTES = 28  # of an element: weight, gradient, two moments read, all but the gradient written
_NORM_BYTES = 12  # read for the norm, read and written to be clipped
# Of an element of a row that is touched: its weight, moments and gradient gathered, copied, updated
# and scattered again.
_ROW_UPDATE_BYTES = {"adam": 72, "adagrad": 40, "sgd": 32}


@dataclass(frozen=True)
class Work:
    """Amounts of what takes time.

    products, mixing, softmax: operations (a multiplication and an addition are two). passes, rows:
    bytes, in order or row by row. launches: of operations. host_link, host_passes: bytes to and
    from the host of a GPU, and through its memory.
    """

    products: float = 0.0
    mixing: float = 0.0
    softmax: float = 0.0
    passes: float = 0.0
    rows: float = 0.0
    launches: float = 0.0
    host_link: float = 0.0
    host_passes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def __mul__(self, times: float) -> "Work":
        return Work(**{f.name: times * getattr(self, f.name) for f in fields(self)})


@dataclass(frozen=True)
class Sizes:
    """What the parts are reckoned from, for one worker of ``workers``.

    tokens: of a micro-batch, all of them targets. engine: elements of the engine's parameters.
    table: elements of a dense item table and its bias, 0 where it is sharded. width: of a row.
    low: bytes of an element as the forward pass reads it. classes: rows that a sampled loss takes.
    fetched: rows of a sharded table that a micro-batch asks for; touched: that a step does.
    """

    workers: int
    micro: int
    tokens: int
    d: int
    blocks: int
    linear: int
    mixing: int
    engine: int
    table: int
    width: int
    low: int
    classes: float
    fetched: float
    touched: float
    items: int
    gpu: bool
    parameters: tuple[int, ...]

    @property
    def sharded(self) -> bool:
        """Whether the item table is outside the engine."""
        return self.table == 0


def sizes_of(recipe: Recipe, counts: Counts, workers: int, gpu: bool) -> Sizes:
    """The sizes of a recipe on so many workers."""
    train, tokens = recipe.train, recipe.data.lane_tokens
    with torch.device("meta"):
        model = models.build(recipe.model, counts.items)
    scores = [part.numel() for part in model.item_scores() if part is not None]
    numbers = [parameter.numel() for parameter in model.parameters()]
    sharded = train.table.home == "sharded"
    if sharded:
        for number in scores:
            numbers.remove(number)
    blocks = -(-tokens // (train.loss.block_tokens or tokens))
    loss = train.loss
    popular = tokens + blocks * (loss.popularity + loss.batch)
    uniform = blocks * loss.uniform
    classes = counts.distinct(popular, uniform)
    fetched = counts.distinct(tokens) if loss.name == "full_softmax" else classes
    lanes = recipe.data.lanes
    touched = counts.distinct(lanes * (popular if uniform else tokens), lanes * uniform)
    return Sizes(
        workers=workers,
        micro=micro_steps(workers, lanes),
        tokens=tokens,
        d=recipe.model.d,
        blocks=int(getattr(recipe.model, "blocks", 1)),
        linear=linear_flops(model),
        mixing=model.mixing_flops(counts.length),
        engine=sum(numbers),
        table=0 if sharded else sum(scores),
        width=recipe.model.d + (len(scores) > 1),
        low=2 if train.precision == "bf16" else 4,
        classes=classes,
        fetched=fetched,
        touched=touched,
        items=counts.items,
        gpu=gpu,
        parameters=tuple(numbers),
    )


def work_of(recipe: Recipe, sizes: Sizes) -> dict[str, Work]:
    """The work of a step by part: lookup, trunk, loss, update."""
    parts = {
        "lookup": _lookup(sizes),
        "trunk": _trunk(recipe, sizes),
        "loss": _loss(recipe, sizes),
    }
    found = {name: work * sizes.micro for name, work in parts.items()}
    return {**found, "update": _update(recipe, sizes)}


def _lookup(sizes: Sizes) -> Work:
    """Rows of the tokens' items, and the sum of their gradients by item."""
    t, d = sizes.tokens, sizes.d
    rows = t * d * (2 * sizes.low + 12)  # gathered; its gradient read, added to what is there
    if not sizes.sharded:
        return Work(rows=rows, passes=4 * sizes.table)  # a gradient of zeros to add to
    # Found by who keeps it and copied; the same for its gradient, which is joined and summed up.
    return Work(rows=rows + 24 * sizes.fetched * sizes.width, passes=64 * t, launches=40)


def _trunk(recipe: Recipe, sizes: Sizes) -> Work:
    """Forward once, backward twice; once more forward where activations are made anew."""
    again = recipe.model.activation_checkpointing
    t, times = sizes.tokens, 4 if again else 3
    kept = recipe.model.model_copy(update={"activation_checkpointing": False})
    activations = activation_bytes(kept, recipe.train.precision, t)
    return Work(
        products=times * t * sizes.linear,
        mixing=times * t * sizes.mixing,
        passes=(_ACTIVATION_PASSES + 2 * again) * activations,
        launches=(_LAUNCHES_A_BLOCK * sizes.blocks + _LAUNCHES_BESIDE) * times / 3,
    )


def _loss(recipe: Recipe, sizes: Sizes) -> Work:
    t, d, loss = sizes.tokens, sizes.d, recipe.train.loss
    if loss.name == "full_softmax":
        return _sharded_softmax(sizes) if sizes.sharded else _full_softmax(sizes)
    # Scores and their two gradients against the negatives of the token's block, and one target.
    pairs = t * (loss.negatives + 1)
    times = 4 if sizes.gpu else 3  # the Triton kernels make the scores twice
    passes = 4 * 4 * sizes.table  # a gradient of zeros, added to the lookup's
    rows = 6 * 4 * sizes.classes * sizes.width  # gathered; the gradient made, scaled, scattered
    return Work(softmax=2 * times * pairs * d, passes=passes, rows=rows, launches=_LAUNCHES_BESIDE)


def _full_softmax(sizes: Sizes) -> Work:
    """Products of tokens, classes and width: scores, the gradients of either side."""
    pairs = sizes.tokens * (sizes.items + 1)
    kernel = sizes.gpu and sizes.d <= MOST_TRITON_WIDTH
    times = 5 if kernel else 3  # the Triton kernels make the scores three times
    if not sizes.gpu and cpu.makes_scores_twice(sizes.items + 1, sizes.d):
        times = 4
    held = sizes.gpu and not kernel
    # The table's gradient: made, scaled, added to the lookup's; and added up over micro-batches.
    passes = 4 * sizes.table * (1 + 2 + 3 + 3 * (sizes.micro - 1) / sizes.micro)
    passes += 4 * _LOGIT_PASSES * pairs if held else 0
    return Work(softmax=2 * times * pairs * sizes.d, passes=passes, launches=_LAUNCHES_BESIDE)


def _sharded_softmax(sizes: Sizes) -> Work:
    """All workers' tokens against the rows of this one: the scores twice, both gradients."""
    rows = (sizes.items + 1) / sizes.workers
    pairs = sizes.tokens * sizes.workers * rows
    return Work(
        softmax=8 * pairs * sizes.d,
        passes=4 * _TILE_PASSES * pairs + 4 * 6 * rows * sizes.width,
        launches=_LAUNCHES_BESIDE,
    )


def _update(recipe: Recipe, sizes: Sizes) -> Work:
    """AdamW over what the worker keeps the moments of, and the rows of a sharded table."""
    train = recipe.train
    stage = train.zero_stage if train.engine == "deepspeed" else 0
    share = sizes.engine / (sizes.workers if stage else 1)
    work = Work(launches=_LAUNCHES_BESIDE)
    if train.offload == "optimizer":
        work += Work(
            host_link=(4 + sizes.low) * share, host_passes=(_ADAMW_BYTES + _NORM_BYTES) * share
        )
    else:
        work += Work(passes=(_ADAMW_BYTES + _NORM_BYTES) * share)
    if stage:  # gradients into buckets and out of them; masters to what the forward pass reads
        work += Work(passes=4 * sizes.low * sizes.engine + (4 + sizes.low) * share)
    if sizes.sharded:
        every = train.table.optimizer == "dense_adam" or train.loss.name == "full_softmax"
        if every:
            rows = (sizes.items + 1) / sizes.workers * sizes.width
            work += Work(passes=(_ADAMW_BYTES + 3 * _NORM_BYTES) * rows)
        else:
            mine = sizes.touched / sizes.workers * sizes.width
            work += Work(rows=_ROW_UPDATE_BYTES[train.table.optimizer] * mine, launches=40)
    return work
