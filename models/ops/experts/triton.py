"""The experts through Triton kernels: one program a run of whole segments and head, in order.

A program holds its head's experts (K and V, or what is asked of them) in registers. As in
experts.cpp the log-normaliser is highest + log(total), and the backward pass walks forward once
more, keeping five numbers a token and expert, then backward, in a kernel of its own.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from models.ops import segments

AHEAD = tl.constexpr(4)  # tokens whose loads are started early: they do not depend on the state


def forward(*inputs: torch.Tensor) -> torch.Tensor:
    """See ``function.Passes``."""
    read = torch.empty_like(inputs[1])
    bounds = segments.runs(inputs[-1])
    grid, sizes = launch(inputs, bounds)
    forward_kernel[grid](*inputs, bounds, read, **sizes)
    return read


def backward(dread: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """See ``function.Passes``."""
    dscores, dq, dk, dv, *dstate = [torch.empty_like(tensor) for tensor in inputs[:-1]]
    steps = torch.empty(5, *dscores.shape, dtype=torch.float32, device=dread.device)
    bounds = segments.runs(inputs[-1])
    grid, sizes = launch(inputs, bounds)
    reads_kernel[grid](*inputs, bounds, dread, dq, *steps, **sizes)
    backward_kernel[grid](*inputs, bounds, dread, *steps, dscores, dk, dv, *dstate, **sizes)
    return dscores, dq, dk, dv, *dstate


def launch(
    inputs: tuple[torch.Tensor, ...], bounds: torch.Tensor
) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid and the sizes all kernels share."""
    _, heads, count = inputs[0].shape
    width = inputs[1].shape[2]
    slots, lanes = triton.next_power_of_2(count), triton.next_power_of_2(width)
    warps = max(1, min(8, slots * lanes // 1024))
    sizes = {
        "count": count,
        "width": width,
        "scale": width**-0.5,
        "SLOTS": slots,
        "LANES": lanes,
        "num_warps": warps,
    }
    return (len(bounds) - 1, heads), sizes


@triton.jit
def load_row(
    base: tl.tensor,
    at: tl.tensor,
    valid: tl.tensor,
) -> tl.tensor:
    return tl.load(base + at, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def begin_from(
    z: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """The state before the run's first token: nothing but for the batch's first run."""
    carried = tl.program_id(0) == 0
    expert = tl.arange(0, SLOTS)
    at = tl.program_id(1) * count + expert
    highest = tl.load(z + at, mask=carried & (expert < count), other=float("-inf"))
    total = tl.where(highest == float("-inf"), 0.0, 1.0)
    cell, valid = cells(count, width, SLOTS, LANES)
    key = tl.load(keys + cell, mask=carried & valid, other=0.0)
    value = tl.load(values + cell, mask=carried & valid, other=0.0)
    return highest, total, key, value


@triton.jit
def cells(
    count: tl.tensor,
    width: tl.tensor,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
) -> tuple[tl.tensor, ...]:
    """Where this head's K (or V) lies in ``[H, K, e]``, and which of the tile is real."""
    expert = tl.arange(0, SLOTS)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    at = (tl.program_id(1) * count + expert) * width + lane
    return at, (expert < count) & (lane < width)


@triton.jit
def take_in(
    highest: tl.tensor,
    total: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    fresh: tl.tensor,
    score: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
) -> tuple[tl.tensor, ...]:
    """The state with one more token, and the shares of the state before and of the token in it."""
    highest, total = tl.where(fresh, float("-inf"), highest), tl.where(fresh, 0.0, total)
    key, value = tl.where(fresh, 0.0, key), tl.where(fresh, 0.0, value)
    now_highest = tl.maximum(highest, score)
    old = total * tl.exp(highest - now_highest)
    new = tl.exp(score - now_highest)
    kept, taken = old / (old + new), new / (old + new)
    key += (k[None, :] - key) * taken[:, None]
    value += (v[None, :] - value) * taken[:, None]
    return now_highest, old + new, key, value, kept, taken


@triton.jit
def softmax(
    logits: tl.tensor,
    expert: tl.tensor,
    count: tl.tensor,
) -> tl.tensor:
    logits = tl.where(expert < count, logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 0))
    return weights / tl.sum(weights, 0)


@triton.jit
def forward_kernel(
    scores: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    z: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    reset: tl.tensor,
    bounds: tl.tensor,
    read: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    run, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    expert, lane = tl.arange(0, SLOTS), tl.arange(0, LANES)
    highest, total, key, value = begin_from(z, keys, values, count, width, SLOTS, LANES)
    for t in tl.range(tl.load(bounds + run), tl.load(bounds + run + 1), num_stages=AHEAD):
        row = (t * heads + head) * width + lane
        score = load_row(scores, (t * heads + head) * count + expert, expert < count)
        new_key, new_value = load_row(k, row, lane < width), load_row(v, row, lane < width)
        highest, total, key, value, _, _ = take_in(
            highest, total, key, value, tl.load(reset + t), score, new_key, new_value
        )
        query = load_row(q, row, lane < width) * scale
        weights = softmax(tl.sum(key * query[None, :], 1), expert, count)
        sums = tl.sum(value * weights[:, None], 0)
        tl.store(read + row, sums.to(read.dtype.element_ty), mask=lane < width)


@triton.jit
def reads_kernel(
    scores: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    z: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    reset: tl.tensor,
    bounds: tl.tensor,
    dread: tl.tensor,
    dq: tl.tensor,
    kept_of: tl.tensor,
    taken_of: tl.tensor,
    weights_of: tl.tensor,
    dlogits_of: tl.tensor,
    pull_of: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """Forward once more: dq, and of each token and expert what the walk back needs."""
    run, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    expert, lane = tl.arange(0, SLOTS), tl.arange(0, LANES)
    real = expert < count
    highest, total, key, value = begin_from(z, keys, values, count, width, SLOTS, LANES)
    for t in tl.range(tl.load(bounds + run), tl.load(bounds + run + 1), num_stages=AHEAD):
        row = (t * heads + head) * width + lane
        at = (t * heads + head) * count + expert
        score = load_row(scores, at, real)
        new_key, new_value = load_row(k, row, lane < width), load_row(v, row, lane < width)
        highest, total, key, value, kept, taken = take_in(
            highest, total, key, value, tl.load(reset + t), score, new_key, new_value
        )
        query = load_row(q, row, lane < width) * scale
        upstream = load_row(dread, row, lane < width)
        logits = tl.sum(key * query[None, :], 1)
        weights = softmax(logits, expert, count)
        dweights = tl.sum(value * upstream[None, :], 1)
        dlogits = weights * (dweights - tl.sum(weights * dweights, 0))
        dquery = tl.sum(key * dlogits[:, None], 0) * scale
        tl.store(dq + row, dquery.to(dq.dtype.element_ty), mask=lane < width)
        tl.store(kept_of + at, kept, mask=real)
        tl.store(taken_of + at, taken, mask=real)
        tl.store(weights_of + at, weights, mask=real)
        tl.store(dlogits_of + at, dlogits, mask=real)
        # What the token asks of the expert's averages, along these averages.
        tl.store(pull_of + at, dlogits * logits + weights * dweights, mask=real)


@triton.jit
def backward_kernel(
    scores: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    z: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    reset: tl.tensor,
    bounds: tl.tensor,
    dread: tl.tensor,
    kept_of: tl.tensor,
    taken_of: tl.tensor,
    weights_of: tl.tensor,
    dlogits_of: tl.tensor,
    pull_of: tl.tensor,
    dscores: tl.tensor,
    dk: tl.tensor,
    dv: tl.tensor,
    dz: tl.tensor,
    dkeys: tl.tensor,
    dvalues: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    scale: tl.tensor,
    SLOTS: tl.constexpr,
    LANES: tl.constexpr,
) -> None:
    """Backward in time with what later tokens ask of K and V, each weighted by the share that
    this moment's state has in its own; `pull` is that of both averages along themselves."""
    run, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    expert, lane = tl.arange(0, SLOTS), tl.arange(0, LANES)
    real = expert < count
    of_keys = tl.zeros((SLOTS, LANES), tl.float32)
    of_values = tl.zeros((SLOTS, LANES), tl.float32)
    pull = tl.zeros((SLOTS,), tl.float32)
    begin, end = tl.load(bounds + run), tl.load(bounds + run + 1)
    for back in tl.range(0, end - begin, num_stages=AHEAD):
        t = end - 1 - back
        row = (t * heads + head) * width + lane
        at = (t * heads + head) * count + expert
        query = load_row(q, row, lane < width) * scale
        of_keys += load_row(dlogits_of, at, real)[:, None] * query[None, :]
        upstream = load_row(dread, row, lane < width)
        of_values += load_row(weights_of, at, real)[:, None] * upstream[None, :]
        pull += load_row(pull_of, at, real)
        taken, kept = load_row(taken_of, at, real), load_row(kept_of, at, real)
        dkey = tl.sum(of_keys * taken[:, None], 0)
        dvalue = tl.sum(of_values * taken[:, None], 0)
        tl.store(dk + row, dkey.to(dk.dtype.element_ty), mask=lane < width)
        tl.store(dv + row, dvalue.to(dv.dtype.element_ty), mask=lane < width)
        key, value = load_row(k, row, lane < width), load_row(v, row, lane < width)
        along = tl.sum(of_keys * key[None, :] + of_values * value[None, :], 1)
        tl.store(dscores + at, taken * (along - pull), mask=real)
        of_keys *= kept[:, None]
        of_values *= kept[:, None]
        pull *= kept  # which is zero at a segment's first token
    if run == 0:
        # What is left before the first token is the initial state's gradient.
        cell, valid = cells(count, width, SLOTS, LANES)
        tl.store(dkeys + cell, of_keys, mask=valid)
        tl.store(dvalues + cell, of_values, mask=valid)
        along = tl.sum(of_keys * load_row(keys, cell, valid), 1)
        along += tl.sum(of_values * load_row(values, cell, valid), 1)
        tl.store(dz + head * count + expert, along - pull, mask=real)
