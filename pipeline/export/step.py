"""The step of a model as a file for ``torch.export.load``: it runs without longhaul."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from models import SequentialModel
from models.base import State

_USERS = 3  # of the example: one or two could be taken for constants


class _Step(nn.Module):
    def __init__(self, model: SequentialModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        return self.model.step(items, state)


def no_step(model: SequentialModel) -> str | None:
    """Why the model has no step; None where it has one."""
    if model.config.causal:
        return None
    return (
        f"{model.config.name} looks both ways here: a new event changes what is known of all the "
        "others, so there is no state that one event could extend"
    )


def export_step(model: SequentialModel) -> bytes:
    """(items int64 ``[n]``, state) -> (hidden ``[n, d]``, new state), for any ``n``, as ``.pt2``.

    The number of events a state may take is not checked in it. ValueError where the model is not
    causal.
    """
    model.check_causal()
    state = model.init_state(_USERS)
    users = torch.export.Dim("users", min=1)
    shapes = ({0: users}, {key: {0: users} for key in state})
    device = model.item_scores()[0].device
    items = torch.ones(_USERS, dtype=torch.int64, device=device)
    with torch.no_grad(), _quiet():
        program = torch.export.export(_Step(model), (items, state), dynamic_shapes=shapes)
        content = io.BytesIO()
        torch.export.save(program, content)
    return content.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks about shapes that are as they should be."""
    log = logging.getLogger("torch")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
