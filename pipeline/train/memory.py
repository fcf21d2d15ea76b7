"""The memory of one worker while it trains, reckoned from a recipe before anything is allocated.

Training goes through moments: the model is built, a loss is made while all activations are kept,
the backward pass ends with gradients beside the engine's buffers, an update follows. What is held
throughout and the largest moment make the peak; a checkpoint copies beside it. Where a line says
"measured", ``benchmarks/memory.py`` did, with torch's memory profiler to tell what was allocated;
the rest follows the code of torch 2.13, DeepSpeed 0.19 and ours.
"""

from collections import Counter
from dataclasses import dataclass

import torch

import models
from models.item_table import take_table_out
from pipeline.config import Recipe
from pipeline.manifest import Dataset
from pipeline.stream.order import micro_steps
from pipeline.tensor_files import cut, divide
from pipeline.train.activations import activation_bytes
from pipeline.train.table.memory import table_memory

PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "buffers",
    "loss",
    "activations",
    "reading",
    "checkpoint",
)
"""Of the engine, the loss, the stream and the saver; see ``memory_of``."""

HOST = ("reading", "checkpoint")
"""What lies in the host's memory where the others are on a GPU; ``optimizer`` too, offloaded."""

_WHOLE_BUCKET = 500_000_000  # elements: what DeepSpeed reduces at once where ZeRO does not


@dataclass(frozen=True)
class Memory:
    """Bytes by part: in each moment, between two steps (``held``), and of a checkpoint beside it.

    state: of all workers together, as a checkpoint has it.
    """

    moments: dict[str, Counter[str]]
    held: Counter[str]
    checkpoint: int
    state: int

    @property
    def training(self) -> int:
        """The peak of training, without a checkpoint."""
        return max(moment.total() for moment in self.moments.values())

    @property
    def saving(self) -> int:
        """The peak of a checkpoint while nothing is trained beside it."""
        return self.held.total() + self.checkpoint

    @property
    def parts(self) -> dict[str, int]:
        """At the peak of training while a checkpoint is written: by name, as in ``PARTS``."""
        moment = max(self.moments.values(), key=Counter.total)
        found = moment + Counter(checkpoint=self.checkpoint)
        return {part: found[part] for part in PARTS}


@dataclass(frozen=True)
class _Engine:
    """Elements: ``all`` of the engine's parameters, ``table`` and its bias, ``largest`` parameter.

    groups: elements of the parameters of AdamW's groups, in order. low: bytes of an element as the
    forward pass reads it.
    """

    groups: list[list[int]]
    table: int
    low: int
    workers: int

    @property
    def all(self) -> int:
        return sum(map(sum, self.groups))

    @property
    def largest(self) -> int:
        return max(max(group, default=0) for group in self.groups)

    @property
    def share(self) -> int:
        return -(-self.all // self.workers)

    @property
    def touched(self) -> int:
        """Of parameters that are in a rank's partition, wholly or not; of the rank with most."""
        return max(
            sum(_in_partition(group, rank, self.workers) for group in self.groups)
            for rank in range(self.workers)
        )

    def bucket(self, size: int) -> int:
        """How far a buffer of ``size`` is filled by gradients that fit into it."""
        return min(size, sum(n for group in self.groups for n in group if n <= size))


def _in_partition(group: list[int], rank: int, workers: int) -> int:
    begin, end = (sum(group) * place // workers for place in (rank, rank + 1))
    found = first = 0
    for numel in group:
        found += numel if first < end and first + numel > begin else 0
        first += numel
    return found


def memory_of(recipe: Recipe, dataset: Dataset, workers: int) -> Memory:
    """The memory of one worker among ``workers``: of the largest one, where they differ.

    On a GPU ``reading`` and ``checkpoint`` are the host's, and so is ``optimizer`` with
    ``train.offload optimizer``.
    """
    train, tokens = recipe.train, recipe.data.lane_tokens
    items = dataset.manifest.catalogue_size
    micro = micro_steps(workers, recipe.data.lanes)
    engine = _engine_of(recipe, items, workers)
    held, moments = _replica(engine, micro)
    if train.engine == "deepspeed":
        bf16 = train.precision == "bf16"
        offload = train.offload == "optimizer"
        if train.zero_stage == 0:
            held, moments = _stage_0(engine, micro)
        elif train.zero_stage == 1 and bf16:
            held, moments = _bf16_stage_1(engine, micro)
        elif train.zero_stage == 3:
            held, moments = _stage_3(engine, offload)
        else:
            held, moments = _stages_1_2(engine, train.zero_stage, micro, offload)
    copies = 12 * engine.share  # weights and both moments in fp32: export()
    state = 12 * engine.all
    saved = [4 * min(n, engine.share) for group in engine.groups for n in group for _ in range(3)]
    # trunc_normal_ has a copy, two selections and a mask of a parameter beside it.
    build = Counter(weights=4 * engine.all, buffers=13 * engine.largest)
    # The loss makes gradients of hidden states and classes beside each other (models/ops/softmax,
    # models/ops/sampled), and scales them into others in the backward pass: fp32, twice each.
    hidden = 8 * tokens * recipe.model.d
    classes = _classes(recipe, items)
    loss = Counter(loss=hidden + 8 * classes * (recipe.model.d + 1))
    if train.table.home == "sharded":
        table = table_memory(recipe, items, workers, _fetched(recipe, items))
        held += table.held
        moments.setdefault("update", Counter())  # offloaded, the trunk's takes nothing here
        for moment in moments.values():
            moment += table.beside
        moments["update"] += table.update
        build += table.build
        copies += sum(table.copies)
        state += table.state
        saved += table.copies
        if train.loss.name == "full_softmax":
            loss = Counter(loss=hidden + table.loss)
    moments["loss"] += loss
    moments["loss"] += Counter(activations=activation_bytes(recipe.model, train.precision, tokens))
    reading = Counter(reading=_reading_bytes(recipe, dataset, workers))
    held += reading
    reached = {name: held + moment for name, moment in moments.items()}
    reached["build"] = build + reading
    # export() copies all pieces; safetensors has a file's tensors as bytes apart, then joined.
    parts = [len(part) for size in saved for part in cut(size)]
    largest = max(sum(parts[place] for place in places) for places in divide(parts))
    encoded = 2 * min(copies, largest)
    return Memory(reached, held, copies + encoded, state)


def _engine_of(recipe: Recipe, items: int, workers: int) -> _Engine:
    """The parameters that the engine trains, without memory for them."""
    sharded = recipe.train.table.home == "sharded"
    with torch.device("meta"):
        model = models.build(recipe.model, 1 if sharded else items)
        if sharded:
            take_table_out(model, items)
    undecayed = model.undecayed()
    groups: list[list[int]] = [[], []]
    for name, parameter in model.named_parameters():
        groups[name in undecayed].append(parameter.numel())
    table = 0 if sharded else sum(p.numel() for p in model.item_scores() if p is not None)
    return _Engine(groups, table, 2 if recipe.train.precision == "bf16" else 4, workers)


def _classes(recipe: Recipe, items: int) -> int:
    """Rows of classes that the loss of a micro-batch has, at most."""
    loss, tokens = recipe.train.loss, recipe.data.lane_tokens
    if loss.name == "full_softmax":
        return items + 1
    blocks = -(-tokens // (loss.block_tokens or tokens))
    return min(items + 1, tokens + blocks * loss.negatives)


def _fetched(recipe: Recipe, items: int) -> int:
    """Rows of a sharded table that a micro-batch has at hand, at most."""
    if recipe.train.loss.name == "full_softmax":
        return min(items + 1, recipe.data.lane_tokens)
    return _classes(recipe, items)


def _replica(engine: _Engine, micro: int) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """engine.TorchEngine: everything whole, in fp32; AdamW's update is in place (fused)."""
    p = engine.all
    held = Counter(weights=4 * p, optimizer=8 * p)
    # zero_grad() drops gradients, so the first micro-batch has none before its backward pass.
    kept = Counter(gradients=4 * p * (micro > 1))
    # The table's gradient as input is made beside that as classes, then added to it.
    backward = Counter(gradients=4 * p, buffers=4 * engine.table * (1 + (micro > 1)))
    small = sum(n for group in engine.groups for n in group if n < 1 << 20)
    joined = 4 * small * (engine.workers > 1)  # sum_over_ranks()
    update = Counter(gradients=4 * p, buffers=joined)
    return held, {"loss": kept, "backward": backward, "update": update}


def _stage_0(engine: _Engine, micro: int) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """Replicas too; engine.allreduce_gradients() flattens gradients, even those of one rank."""
    held, moments = _replica(engine, micro)
    flat = 4 * min(engine.all, _WHOLE_BUCKET + engine.largest)
    reduced = Counter(gradients=4 * engine.all, buffers=flat)
    return held, moments | {"reduce": reduced, "update": Counter(gradients=4 * engine.all)}


def _bf16_stage_1(engine: _Engine, micro: int) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """bf16_optimizer.BF16_Optimizer: gradients are whole, in bf16 and in sums of fp32."""
    p = engine.all
    held = Counter(weights=2 * p, gradients=4 * p, optimizer=12 * engine.share)
    # Flattened in fp32, then rounded to bf16, which is what is sent (communication_data_type).
    flat = min(p, _WHOLE_BUCKET + engine.largest)
    return held, {
        "loss": Counter(gradients=2 * p * (micro > 1)),
        "reduce": Counter(gradients=2 * p, buffers=6 * flat),
        "update": Counter(buffers=2 * p * (engine.workers > 1)),  # gloo gathers into a copy
    }


def _stages_1_2(
    engine: _Engine, stage: int, micro: int, offload: bool
) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """zero/stage_1_and_2.py: flat weights, masters and moments by partition."""
    from pipeline.train.zero import BUCKET

    p, low, share = engine.all, engine.low, engine.share
    piece = min(engine.largest, share)
    held = Counter(weights=low * p, optimizer=12 * share)
    bucket = low * engine.bucket(BUCKET)
    if engine.workers > 1:
        bucket *= 2  # and flattened once more for the ranks (allreduce_and_scatter)
    # get_flat_partition() has whole parameters, of which narrow() takes the partition.
    averaged = (4 if offload or stage == 2 else low) * (share if offload else engine.touched)
    norm = 8 * piece  # a gradient in fp64 (get_norm_dtype)
    if offload:
        # fp32 gradients and weights as they are read, both by partition; two buffers of the
        # largest parameter (temp_grad_buffer_for_cpu_offload, _for_gpu_offload).
        held += Counter(gradients=4 * share, buffers=low * (share + 2 * engine.largest))
        kept = 4 * share * (low == 2 or micro > 1)  # sums over micro-batches
        # A parameter larger than a bucket is cloned; two buckets, since its use overlaps.
        clones = low * engine.largest * (engine.largest > BUCKET) * (1 + (low == 2))
        local = 0 if stage == 2 else low * (p - engine.largest)
        backward = Counter(gradients=kept + local, buffers=norm + clones + 2 * bucket)
        loss = Counter(gradients=kept, buffers=clones * (micro > 1) // 2)
        return held, {"loss": loss, "backward": backward}
    flat = max(norm, 4 * share)
    update = Counter(gradients=averaged, buffers=flat)
    if stage == 1:
        loss = Counter(gradients=low * p * (micro > 1), buffers=bucket * (micro > 1))
        end = Counter(gradients=low * p + averaged, buffers=bucket)
        early = Counter(gradients=low * p, buffers=low * engine.table + bucket)
        return held, {"loss": loss, "backward": early, "reduce": end, "update": update}
    # Gradients go into the partition as buckets fill; the table's is the last.
    last = low * max(engine.table, engine.largest)
    loss = Counter(gradients=averaged * (micro > 1), buffers=bucket * (micro > 1))
    end = Counter(gradients=averaged, buffers=last + bucket)
    return held, {"loss": loss, "reduce": end, "update": update}


def _stage_3(engine: _Engine, offload: bool) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """zero/stage3.py: weights, masters, moments and fp32 gradients by partition."""
    from pipeline.train.zero import BUCKET, LIVE

    p, low, share, largest = engine.all, engine.low, engine.share, engine.largest
    piece = -(-largest // engine.workers)
    bucket = low * engine.bucket(BUCKET)  # allocated once (__ipg_bucket_flat_buffer)
    held = Counter(weights=low * share, optimizer=12 * share, gradients=4 * share, buffers=bucket)
    if offload:
        held += Counter(gradients=4 * share)  # and those that the optimizer reads
    # What stays whole between its uses; one rank reads its weights where they are.
    gathered = low * min(p, max(LIVE, largest)) * (engine.workers > 1)
    wide = 4 * largest * (low == 2)  # a gradient in fp32 on its way into the sums
    return held, {
        "loss": Counter(buffers=gathered),
        # A gradient as it was made and scattered; a table's as classes, and as input.
        "backward": Counter(buffers=gathered + 2 * low * largest + wide),
        "update": Counter(buffers=max(8 * piece, 4 * share)),
    }


def _reading_bytes(recipe: Recipe, dataset: Dataset, workers: int) -> int:
    """Members kept and read ahead, and the groups that this worker's lanes are in."""
    whole = int((dataset.stop - dataset.start).sum())
    lanes = -(-recipe.data.lanes // workers)
    group = min(len(dataset), recipe.data.shuffle_members) / max(1, len(dataset)) * whole
    held = min(whole, int(recipe.reading.memory)) + min(whole, int(recipe.reading.ahead))
    return held + round(lanes * min(group, whole / lanes))
