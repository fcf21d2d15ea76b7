"""What computes and applies gradients: DeepSpeed, or plain replicas of torch.

Both take the sum of a loss over a micro-batch and the number of targets of the whole step, and
both give and take their state by parameter name, whole and in fp32, so that a checkpoint belongs
to neither, nor to a world size.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist

from models import PackedBatch, SequentialModel
from models.losses import FullSoftmax
from pipeline.config import TrainConfig
from pipeline.train.optimizer import build_optimizer
from pipeline.world import World

# What is kept of every parameter; AdamW's step count is one number for all.
KINDS = ("weight", "exp_avg", "exp_avg_sq")


class Engine(Protocol):
    """One rank's part of the training of ``model``."""

    model: SequentialModel

    def backward(self, batch: PackedBatch, step_targets: int) -> torch.Tensor:
        """Add the gradient of one micro-batch; its loss sum, fp32 ``[]``, on the device."""

    def update(self, lr: float) -> float:
        """Apply the step's gradient after its last micro-batch; the norm before clipping."""

    def shapes(self) -> dict[str, torch.Size]:
        """Whole shapes of the parameters by name."""

    def export(self, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
        """State tensors ``KIND/NAME`` (fp32, CPU) of the wanted parameters; all ranks call it."""

    def restore(self, read: Callable[[str], torch.Tensor], updates: int) -> None:
        """Take the state over from ``read("KIND/NAME")`` after ``updates`` optimizer updates."""

    def scoring(self) -> Any:
        """A context in which ``model`` is whole and in eval mode; all ranks enter it."""


def build_engine(model: SequentialModel, config: TrainConfig, world: World, micro: int) -> Engine:
    """The engine of the recipe; ``micro`` is the number of micro-batches a rank runs a step."""
    if config.engine == "torch":
        return TorchEngine(model, config, world)
    return DeepSpeedEngine(model, config, world, micro)


class TorchEngine:
    """Replicas: gradients are summed over the ranks, every rank applies the same update."""

    def __init__(self, model: SequentialModel, config: TrainConfig, world: World) -> None:
        self.model = model.to(world.device)
        self._loss = FullSoftmax(self.model).train()
        self._parameters = list(self.model.parameters())
        self._optimizer = build_optimizer(self.model, config.optimizer)
        self._clip_norm = config.optimizer.clip_norm
        self._world = world
        self._autocast = config.precision == "autocast"

    def backward(self, batch: PackedBatch, step_targets: int) -> torch.Tensor:
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._autocast):
            loss: torch.Tensor = self._loss(batch.to(self._world.device))
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

    def export(self, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
        return _export_replica(self.model, self._optimizer, wanted)

    def restore(self, read: Callable[[str], torch.Tensor], updates: int) -> None:
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
        self, model: SequentialModel, config: TrainConfig, world: World, micro: int
    ) -> None:
        deepspeed = _import_deepspeed(world.device)
        self.model = model.to(world.device)
        self._world = world
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        self._stage = config.zero_stage
        self._clip_norm = config.optimizer.clip_norm
        self._average = micro * world.world_size
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=FullSoftmax(self.model),
            optimizer=build_optimizer(self.model, config.optimizer),
            config=_deepspeed_config(config, world.world_size, micro),
        )
        if self._stage:
            _create_moments(self._optimizer)
        self._engine.train()

    def backward(self, batch: PackedBatch, step_targets: int) -> torch.Tensor:
        loss: torch.Tensor = self._engine(batch.to(self._world.device))
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

    def export(self, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
        if self._stage == 0:
            return _export_replica(self.model, self._optimizer, wanted)
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        state: dict[str, torch.Tensor] = {}
        for name, parameter in self.model.named_parameters():
            # Every rank takes part in gathering a parameter; only the one that writes it keeps it.
            for kind in KINDS:
                full = (
                    safe_get_full_fp32_param(parameter)
                    if kind == "weight"
                    else safe_get_full_optimizer_state(parameter, kind)
                )
                if wanted(name):
                    state[f"{kind}/{name}"] = full.detach().float().cpu().clone()
        return state

    def restore(self, read: Callable[[str], torch.Tensor], updates: int) -> None:
        if self._stage == 0:
            _restore_replica(self.model, self._optimizer, read, updates)
            return
        import deepspeed

        for name, parameter in self.model.named_parameters():
            whole = {kind: read(f"{kind}/{name}").to(self._world.device) for kind in KINDS}
            if self._stage == 3:
                _set_partition(parameter, whole, self._world)
            else:
                _set_whole(parameter, whole)
            # The masters are set; what the forward pass reads must follow now, not a step later.
            gathered = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
            with gathered, torch.no_grad():
                parameter.data.copy_(whole["weight"].to(parameter.dtype))
        _set_updates(self._optimizer.optimizer, updates)

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


def _set_whole(parameter: torch.Tensor, whole: dict[str, torch.Tensor]) -> None:
    """Stages 1 and 2: DeepSpeed picks this rank's part."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    safe_set_full_fp32_param(parameter, whole["weight"])
    for kind in KINDS[1:]:
        safe_set_full_optimizer_state(parameter, whole[kind], kind)


def _set_partition(parameter: torch.Tensor, whole: dict[str, torch.Tensor], world: World) -> None:
    """Stage 3: cut this rank's part here.

    ``safe_set_full_*`` of DeepSpeed 0.19.8 reads past the end of a parameter that the ranks do not
    divide evenly, since it forgets the padding of the last parts.
    """
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    part = -(-whole["weight"].numel() // world.world_size)
    for kind, tensor in whole.items():
        padded = torch.nn.functional.pad(
            tensor.flatten(), (0, part * world.world_size - tensor.numel())
        )
        mine = padded[part * world.rank : part * (world.rank + 1)]
        if kind == "weight":
            safe_set_local_fp32_param(parameter, mine)
        else:
            safe_set_local_optimizer_state(parameter, mine, kind)


def _set_rate(optimizer: Any, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    for state in optimizer.state.values():
        state["step"] = torch.as_tensor(float(updates), device=state["exp_avg"].device)


def _export_replica(
    model: SequentialModel, optimizer: torch.optim.Optimizer, wanted: Callable[[str], bool]
) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if not wanted(name):
            continue
        state[f"weight/{name}"] = parameter.detach().cpu().clone()
        moments = optimizer.state.get(parameter, {})
        for kind in KINDS[1:]:
            # Before the first update there is no state yet, which is a state of zeros.
            moment = moments.get(kind, torch.zeros_like(parameter))
            state[f"{kind}/{name}"] = moment.detach().cpu().clone()
    return state


def _restore_replica(
    model: SequentialModel,
    optimizer: torch.optim.Optimizer,
    read: Callable[[str], torch.Tensor],
    updates: int,
) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(read(f"weight/{name}"))
            moments = {kind: read(f"{kind}/{name}").to(parameter.device) for kind in KINDS[1:]}
            optimizer.state[parameter] = {**moments}
    _set_updates(optimizer, updates)
