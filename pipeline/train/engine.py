"""What computes and applies gradients: what engines have in common, and plain replicas of torch.

Both take the sum of a loss over a micro-batch and the number of targets of the whole step, and
both give and take their state by parameter name, whole and in fp32, so that a checkpoint belongs
to neither, nor to a world size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from models import PackedBatch, SequentialModel
from models.losses import Drawn, Loss
from pipeline.config import TrainConfig
from pipeline.evaluate import ModelScorer, Scorer
from pipeline.train.clock import Clock
from pipeline.train.optimizer import build_optimizer
from pipeline.world import World

# What is kept of every parameter; AdamW's step count is one number for all.
KINDS = ("weight", "exp_avg", "exp_avg_sq")
_DIVIDED_ELEMENTS = 4096  # a replicated parameter of fewer is not cut up to be saved
_JOINED_ELEMENTS = 1 << 20  # gradients of fewer are summed over the ranks together


@dataclass(frozen=True)
class Piece:
    """Elements ``begin`` up to ``end`` of the flattened tensor ``KIND/NAME``."""

    tensor: str
    begin: int
    end: int


class Read(Protocol):
    """Reads a state: elements ``begin`` up to ``end`` (None: all) of a flattened ``KIND/NAME``."""

    def __call__(self, tensor: str, begin: int = 0, end: int | None = None) -> torch.Tensor: ...


class Engine(Protocol):
    """One rank's part of the training of ``model``; its clock times what it does."""

    model: SequentialModel
    clock: Clock

    def backward(
        self, batch: PackedBatch, step_targets: int, drawn: Drawn | None = None
    ) -> torch.Tensor:
        """Add the gradient of one micro-batch; its loss sum, fp32 ``[]``, on the device.

        drawn: the loss's negatives, where they were drawn before.
        """

    def update(self, lr: float, beside: float = 0.0) -> float:
        """Apply the step's gradient after its last micro-batch; the norm before clipping.

        beside: the squared norm of what belongs to the gradient and is updated elsewhere.
        """

    def shapes(self) -> dict[str, torch.Size]:
        """Whole shapes of the parameters by name; by ``KIND/NAME`` of a kind of another shape."""

    def export(self) -> list[tuple[Piece, torch.Tensor]]:
        """Copies (fp32, CPU) of the pieces of the state that this rank is to save.

        All ranks' pieces together are the whole state, each element once.
        """

    def restore(self, read: Read, updates: int) -> None:
        """Take over what this rank needs of a state after ``updates`` optimizer updates."""

    def scoring(self) -> Any:
        """A context in which ``model`` is whole and in eval mode; all ranks enter it."""

    def scorer(self) -> Scorer:
        """The model as evaluation asks it, inside ``scoring``."""


class TorchEngine:
    """Replicas: gradients are summed over the ranks, every rank applies the same update."""

    def __init__(
        self, model: SequentialModel, loss: Loss, config: TrainConfig, world: World
    ) -> None:
        self.model = model.to(world.device)
        self.clock = Clock()
        self._loss = loss.to(world.device).train()
        self._parameters = list(self.model.parameters())
        self._optimizer = build_optimizer(self.model, config.optimizer)
        self._clip_norm = config.optimizer.clip_norm
        self._world = world
        self._masks = config.objective.masks
        self._autocast = config.precision == "autocast"

    def backward(
        self, batch: PackedBatch, step_targets: int, drawn: Drawn | None = None
    ) -> torch.Tensor:
        device = self._world.device
        with self.clock.timed("forward"):
            drawn = drawn or self._loss.draw(batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=self._autocast):
                loss: torch.Tensor = self._loss(batch.to(device), drawn)
        with self.clock.timed("backward"):
            (loss / step_targets).backward()
        return loss.detach()

    def update(self, lr: float, beside: float = 0.0) -> float:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._world.world_size > 1:
            with self.clock.timed("exchange"):
                sum_over_ranks(gradients)
        with self.clock.timed("update"):
            norm = clip(self._parameters, self._clip_norm, beside)
            set_rate(self._optimizer, lr)
            self._optimizer.step()
            self._optimizer.zero_grad()
        return norm

    def shapes(self) -> dict[str, torch.Size]:
        return {name: p.shape for name, p in self.model.named_parameters()}

    def export(self) -> list[tuple[Piece, torch.Tensor]]:
        return export_replica(self.model, self._optimizer, self._world)

    def restore(self, read: Read, updates: int) -> None:
        restore_replica(self.model, self._optimizer, read, updates)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        self.model.eval()
        with torch.no_grad():
            yield
        self._loss.train()

    def scorer(self) -> Scorer:
        return ModelScorer(self.model, self._masks)


def sum_over_ranks(gradients: Sequence[torch.Tensor]) -> None:
    """In place; large ones by themselves, so that they are not copied, small ones joined."""
    small = [gradient for gradient in gradients if gradient.numel() < _JOINED_ELEMENTS]
    for gradient in gradients:
        if gradient.numel() >= _JOINED_ELEMENTS:
            dist.all_reduce(gradient)
    if small:
        flat = torch.cat([gradient.reshape(-1) for gradient in small])
        dist.all_reduce(flat)
        for gradient, part in zip(
            small, flat.split([gradient.numel() for gradient in small]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))


def clip(parameters: Sequence[nn.Parameter], limit: float | None, beside: float) -> float:
    """Clip gradients as part of a larger one; the norm of all before that."""
    own = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = torch.sqrt(own.square() + beside) if beside else own
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return float(norm)


def clip_factor(norm: float, limit: float | None) -> float:
    """By what ``clip`` multiplies a gradient."""
    return 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))


def set_rate(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    for state in optimizer.state.values():
        state["step"] = torch.as_tensor(float(updates), device=state["exp_avg"].device)


def export_replica(
    model: SequentialModel, optimizer: torch.optim.Optimizer, world: World
) -> list[tuple[Piece, torch.Tensor]]:
    """Every rank has everything: each saves an even share of it."""
    exported = []
    for place, (name, parameter) in enumerate(model.named_parameters()):
        begin, end = _share(parameter.numel(), place, world)
        if begin == end:
            continue
        moments = optimizer.state.get(parameter, {})
        # Before the first update there is no state yet, which is a state of zeros.
        state = {kind: moments.get(kind, torch.zeros_like(parameter)) for kind in KINDS[1:]}
        for kind, tensor in {"weight": parameter, **state}.items():
            part = tensor.detach().view(-1)[begin:end]
            exported.append((Piece(f"{kind}/{name}", begin, end), part.cpu().clone()))
    return exported


def _share(elements: int, place: int, world: World) -> tuple[int, int]:
    """This rank's part of the ``place``-th parameter; a small one belongs to one rank whole."""
    if elements < _DIVIDED_ELEMENTS:
        return (0, elements) if place % world.world_size == world.rank else (0, 0)
    rank, of = world.rank, world.world_size
    return elements * rank // of, elements * (rank + 1) // of


def restore_replica(
    model: SequentialModel, optimizer: torch.optim.Optimizer, read: Read, updates: int
) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read(f"weight/{name}").view_as(parameter))
            optimizer.state[parameter] = {
                kind: read(f"{kind}/{name}").view_as(parameter).to(parameter.device)
                for kind in KINDS[1:]
            }
    set_updates(optimizer, updates)
