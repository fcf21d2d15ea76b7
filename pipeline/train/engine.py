"""What computes and applies gradients: DeepSpeed, or plain replicas of torch.

Both take the sum of a loss over a micro-batch and the number of targets of the whole step, and
both give and take their state by parameter name, whole and in fp32, so that a checkpoint belongs
to neither, nor to a world size.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from models import PackedBatch, SequentialModel
from models.losses import Loss
from pipeline.config import TrainConfig
from pipeline.train.optimizer import build_optimizer
from pipeline.world import World

# What is kept of every parameter; AdamW's step count is one number for all.
KINDS = ("weight", "exp_avg", "exp_avg_sq")
_DIVIDED_ELEMENTS = 4096  # a replicated parameter of fewer is not cut up to be saved


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
    """One rank's part of the training of ``model``."""

    model: SequentialModel

    def backward(self, batch: PackedBatch, step_targets: int) -> torch.Tensor:
        """Add the gradient of one micro-batch; its loss sum, fp32 ``[]``, on the device."""

    def update(self, lr: float) -> float:
        """Apply the step's gradient after its last micro-batch; the norm before clipping."""

    def shapes(self) -> dict[str, torch.Size]:
        """Whole shapes of the parameters by name."""

    def export(self) -> list[tuple[Piece, torch.Tensor]]:
        """Copies (fp32, CPU) of the pieces of the state that this rank is to save.

        All ranks' pieces together are the whole state, each element once.
        """

    def restore(self, read: Read, updates: int) -> None:
        """Take over what this rank needs of a state after ``updates`` optimizer updates."""

    def scoring(self) -> Any:
        """A context in which ``model`` is whole and in eval mode; all ranks enter it."""


def build_engine(
    model: SequentialModel, loss: Loss, config: TrainConfig, world: World, micro: int
) -> Engine:
    """The engine of the recipe. loss: around ``model``. micro: micro-batches a rank runs a step."""
    if config.engine == "torch":
        return TorchEngine(model, loss, config, world)
    return DeepSpeedEngine(model, loss, config, world, micro)


class TorchEngine:
    """Replicas: gradients are summed over the ranks, every rank applies the same update."""

    def __init__(
        self, model: SequentialModel, loss: Loss, config: TrainConfig, world: World
    ) -> None:
        self.model = model.to(world.device)
        self._loss = loss.train()
        self._parameters = list(self.model.parameters())
        self._optimizer = build_optimizer(self.model, config.optimizer)
        self._clip_norm = config.optimizer.clip_norm
        self._world = world
        self._autocast = config.precision == "autocast"

    def backward(self, batch: PackedBatch, step_targets: int) -> torch.Tensor:
        device = self._world.device
        drawn = self._loss.draw(batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._autocast):
            loss: torch.Tensor = self._loss(batch.to(device), drawn)
        (loss / step_targets).backward()
        return loss.detach()

    def update(self, lr: float) -> float:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if self._world.world_size > 1:
            flat = torch.cat([g.reshape(-1) for g in gradients])
            dist.all_reduce(flat)
            parts = flat.split([g.numel() for g in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        limit = self._clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        _set_rate(self._optimizer, lr)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    def shapes(self) -> dict[str, torch.Size]:
        return {name: p.shape for name, p in self.model.named_parameters()}

    def export(self) -> list[tuple[Piece, torch.Tensor]]:
        return _export_replica(self.model, self._optimizer, self._world)

    def restore(self, read: Read, updates: int) -> None:
        _restore_replica(self.model, self._optimizer, read, updates)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        self.model.eval()
        with torch.no_grad():
            yield
        self._loss.train()


class DeepSpeedEngine:
    """ZeRO stages 0 to 3. DeepSpeed averages over ranks and micro-batches; the scale undoes it."""

    def __init__(
        self, model: SequentialModel, loss: Loss, config: TrainConfig, world: World, micro: int
    ) -> None:
        deepspeed = _import_deepspeed(world.device)
        self.model = model.to(world.device)
        self._loss = loss
        self._world = world
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        self._stage = config.zero_stage
        self._clip_norm = config.optimizer.clip_norm
        self._average = micro * world.world_size
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=loss,
            optimizer=build_optimizer(self.model, config.optimizer),
            config=_deepspeed_config(config, world.world_size, micro),
        )
        if self._stage:
            _create_moments(self._optimizer)
        self._engine.train()

    def backward(self, batch: PackedBatch, step_targets: int) -> torch.Tensor:
        drawn = self._loss.draw(batch)
        loss: torch.Tensor = self._engine(batch.to(self._world.device), drawn)
        self._engine.backward(loss * (self._average / step_targets))
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
        return loss.detach()

    def update(self, lr: float) -> float:
        _set_rate(self._optimizer, lr)
        if self._stage == 0:
            # There DeepSpeed clips without telling the norm; the gradients are reduced by now.
            limit = self._clip_norm or float("inf")
            norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
            self._engine.step()
            return norm
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def shapes(self) -> dict[str, torch.Size]:
        return self._shapes

    def export(self) -> list[tuple[Piece, torch.Tensor]]:
        if self._stage == 0:
            return _export_replica(self.model, self._optimizer, self._world)
        exported = []
        for name, parameter in self.model.named_parameters():
            begin, held = self._held(name, parameter)
            for kind, tensor in held.items():
                if len(tensor):
                    piece = Piece(f"{kind}/{name}", begin, begin + len(tensor))
                    exported.append((piece, tensor.detach().float().cpu().clone()))
        return exported

    def restore(self, read: Read, updates: int) -> None:
        if self._stage == 0:
            _restore_replica(self.model, self._optimizer, read, updates)
            return
        parameter: Any
        for name, parameter in self.model.named_parameters():
            begin, held = self._held(name, parameter)
            for kind, tensor in held.items():
                if len(tensor):
                    tensor.copy_(read(f"{kind}/{name}", begin, begin + len(tensor)))
            # The masters are set; what the forward pass reads must follow now, not a step later.
            if self._stage == 3:
                parameter.ds_tensor.data[: len(held["weight"])].copy_(held["weight"])
            if parameter.numel() == self._shapes[name].numel():  # this rank has it whole
                parameter.data.copy_(read(f"weight/{name}").view(self._shapes[name]))
        _set_updates(self._optimizer.optimizer, updates)

    def _held(self, name: str, parameter: Any) -> tuple[int, dict[str, torch.Tensor]]:
        """The piece of a parameter that this rank keeps: where it begins, and each kind of it.

        The tensors are the optimizer's own (flat fp32): writing to them sets its state.
        """
        if self._stage == 3:
            whole = self._shapes[name].numel()
            part = -(-whole // self._world.world_size)
            begin = min(whole, part * self._world.rank)
            size = min(whole, begin + part) - begin  # the last parts are padded behind it
            get = parameter._z3_optimizer.get_local_fp32_param
            held = {kind: get(parameter, None if kind == "weight" else kind) for kind in KINDS}
            return begin, {kind: tensor.data.view(-1)[:size] for kind, tensor in held.items()}
        mapping = parameter._hp_mapping
        if mapping is None:  # all of it is with other ranks
            return 0, {kind: torch.empty(0) for kind in KINDS}
        held = {kind: mapping.get_hp_fragment(None if kind == "weight" else kind) for kind in KINDS}
        begin = mapping.lp_fragment_address.start
        return begin, {kind: tensor.data.view(-1) for kind, tensor in held.items()}

    @contextmanager
    def scoring(self) -> Iterator[None]:
        import deepspeed

        sharded = list(self.model.parameters()) if self._stage == 3 else []
        self.model.eval()
        with torch.no_grad(), deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
            yield
        self._engine.train()


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told which accelerator it is on, without its build of a CPU helper.

    That helper (all-reduce in shared memory) would be compiled at every first start and fails the
    run where there is no compiler; gloo does the same work.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # It refuses to start without; torchrun and Ray Train have set it where it is not 0.
    os.environ.setdefault("LOCAL_RANK", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    return deepspeed


def _deepspeed_config(config: TrainConfig, world_size: int, micro: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        # A micro-batch is one packed batch; its tokens are counted by the stream.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro,
        "train_batch_size": micro * world_size,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": (config.optimizer.clip_norm or 0.0) if config.zero_stage else 0.0,
        "steps_per_print": 10**9,
    }
    if config.precision == "bf16":
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    elif config.precision == "autocast":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return settings


def _create_moments(zero: Any) -> None:
    """Create AdamW's state now; ZeRO would at the first update, too late to restore it before."""
    partitions = next(
        getattr(zero, name)
        for name in (
            "fp32_partitioned_groups_flat",  # stage 3
            "single_partition_of_fp32_groups",  # stages 1 and 2
            "fp32_groups_flat_partition",  # stage 1 in bf16
        )
        if hasattr(zero, name)
    )
    for partition in partitions:
        zero.optimizer.state[partition] = {
            "step": torch.zeros((), device=partition.device),
            **{kind: torch.zeros_like(partition) for kind in KINDS[1:]},
        }
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._lazy_init_hp_params_optimizer_state()


def _set_rate(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    for state in optimizer.state.values():
        state["step"] = torch.as_tensor(float(updates), device=state["exp_avg"].device)


def _export_replica(
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


def _restore_replica(
    model: SequentialModel, optimizer: torch.optim.Optimizer, read: Read, updates: int
) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read(f"weight/{name}").view_as(parameter))
            optimizer.state[parameter] = {
                kind: read(f"{kind}/{name}").view_as(parameter).to(parameter.device)
                for kind in KINDS[1:]
            }
    _set_updates(optimizer, updates)
