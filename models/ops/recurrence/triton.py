"""The recurrence through Triton kernels.

A program walks a run of whole segments token by token, with a block of channels whose state stays
in registers. Loads of later tokens are started ahead (`num_stages`), as they do not depend on it.
"""

import torch
import triton
import triton.language as tl

from models.ops import segments

BLOCK = 64  # channels: two a thread of one warp
AHEAD = 4  # tokens


def forward(
    u: torch.Tensor, decay: torch.Tensor, reset: torch.Tensor, initial: torch.Tensor | None
) -> torch.Tensor:
    """See ``function.Passes``."""
    h = torch.empty_like(u)
    if u.numel():
        bounds, channels = segments.runs(reset), u.shape[1] // 2
        grid = (len(bounds) - 1, triton.cdiv(channels, BLOCK))
        tensors = (u, decay, reset, bounds, initial, h)
        walk[grid](*tensors, channels, AHEAD=AHEAD, BLOCK=BLOCK, num_warps=1)
    return h


def backward(
    dh: torch.Tensor,
    h: torch.Tensor,
    decay: torch.Tensor,
    reset: torch.Tensor,
    initial: torch.Tensor | None,
    dinitial: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``function.Passes``."""
    du = torch.empty_like(h)
    if h.numel() == 0:
        return du, torch.zeros_like(decay)
    bounds, channels = segments.runs(reset), h.shape[1] // 2
    grid = (len(bounds) - 1, triton.cdiv(channels, BLOCK))
    # One partial sum a run, added up in a fixed order: the same bits every time.
    partial = torch.empty((grid[0], *decay.shape), device=h.device)
    tensors = (dh, h, decay, reset, bounds, initial, du, partial, dinitial)
    walk_back[grid](*tensors, channels, AHEAD=AHEAD, BLOCK=BLOCK, num_warps=1)
    return du, partial.sum(0)


@triton.jit
def walk(
    u: tl.tensor,
    decay: tl.tensor,
    reset: tl.tensor,
    bounds: tl.tensor,
    initial: tl.tensor,
    h: tl.tensor,
    channels: tl.tensor,
    AHEAD: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    begin, end = tl.load(bounds + tl.program_id(0)), tl.load(bounds + tl.program_id(0) + 1)
    re = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    im = channels + re
    known = re < channels
    lambda_re, lambda_im = tl.load(decay + re, known, 0.0), tl.load(decay + im, known, 0.0)
    state_re, state_im = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if initial is not None:
        seen = known & (tl.program_id(0) == 0)
        state_re, state_im = tl.load(initial + re, seen, 0.0), tl.load(initial + im, seen, 0.0)
    for t in tl.range(begin, end, num_stages=AHEAD):
        row = t * 2 * channels
        u_re = tl.load(u + row + re, known, 0.0).to(tl.float32)
        u_im = tl.load(u + row + im, known, 0.0).to(tl.float32)
        starts = tl.load(reset + t)
        carried_re = lambda_re * state_re - lambda_im * state_im
        carried_im = lambda_re * state_im + lambda_im * state_re
        state_re = u_re + tl.where(starts, 0.0, carried_re)
        state_im = u_im + tl.where(starts, 0.0, carried_im)
        tl.store(h + row + re, state_re, known)
        tl.store(h + row + im, state_im, known)


# g_t = dh_t + conj(λ) g_{t+1} within a segment; du_t = g_t; dλ = sum g_t conj(h_{t-1}).
@triton.jit
def walk_back(
    dh: tl.tensor,
    h: tl.tensor,
    decay: tl.tensor,
    reset: tl.tensor,
    bounds: tl.tensor,
    initial: tl.tensor,
    du: tl.tensor,
    partial: tl.tensor,
    dinitial: tl.tensor,
    channels: tl.tensor,
    AHEAD: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    begin, end = tl.load(bounds + tl.program_id(0)), tl.load(bounds + tl.program_id(0) + 1)
    re = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    im = channels + re
    known = re < channels
    lambda_re, lambda_im = tl.load(decay + re, known, 0.0), tl.load(decay + im, known, 0.0)
    # conj(λ) g_{t+1}, which flows into token t.
    state_re, state_im = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    sum_re, sum_im = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for step in tl.range(0, end - begin, num_stages=AHEAD):
        t = end - 1 - step
        row = t * 2 * channels
        g_re = tl.load(dh + row + re, known, 0.0).to(tl.float32) + state_re
        g_im = tl.load(dh + row + im, known, 0.0).to(tl.float32) + state_im
        tl.store(du + row + re, g_re, known)
        tl.store(du + row + im, g_im, known)
        carries = tl.load(reset + t) == 0
        state_re = tl.where(carries, lambda_re * g_re + lambda_im * g_im, 0.0)
        state_im = tl.where(carries, lambda_re * g_im - lambda_im * g_re, 0.0)
        earlier = known & carries & (t > 0)
        h_re = tl.load(h + row - 2 * channels + re, earlier, 0.0).to(tl.float32)
        h_im = tl.load(h + row - 2 * channels + im, earlier, 0.0).to(tl.float32)
        if initial is not None:
            before_all = known & carries & (t == 0)
            h_re += tl.load(initial + re, before_all, 0.0)
            h_im += tl.load(initial + im, before_all, 0.0)
        sum_re += g_re * h_re + g_im * h_im
        sum_im += g_im * h_re - g_re * h_im
    total = partial + tl.program_id(0) * 2 * channels
    tl.store(total + re, sum_re, known)
    tl.store(total + im, sum_im, known)
    if dinitial is not None:
        tl.store(dinitial + re, state_re, known & (tl.program_id(0) == 0))
        tl.store(dinitial + im, state_im, known & (tl.program_id(0) == 0))
