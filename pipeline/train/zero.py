"""DeepSpeed as an engine: ZeRO stages 0 to 3, in fp32, bf16 or under autocast."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from models import PackedBatch, SequentialModel
from models.losses import Drawn, Loss
from pipeline.config import TrainConfig
from pipeline.evaluate import ModelScorer, Scorer
from pipeline.train.clock import Clock
from pipeline.train.engine import (
    KINDS,
    Piece,
    Read,
    clip,
    export_replica,
    restore_replica,
    set_rate,
    set_updates,
)
from pipeline.train.optimizer import build_optimizer
from pipeline.world import World

# Elements that ZeRO reduces or gathers at once, and that stage 3 keeps whole. Its own settings are
# larger than most models: nothing would be saved.
BUCKET = 25_000_000
LIVE = 100_000_000


class DeepSpeedEngine:
    """DeepSpeed averages over ranks and micro-batches; the scale of the losses undoes it."""

    def __init__(
        self, model: SequentialModel, loss: Loss, config: TrainConfig, world: World, micro: int
    ) -> None:
        deepspeed = _import_deepspeed(world.device)
        self.model = model.to(world.device)
        self.clock = Clock()
        self._loss = loss
        self._world = world
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        self._stage = config.zero_stage
        self._clip_norm = config.optimizer.clip_norm
        self._masks = config.objective.masks
        self._average = micro * world.world_size
        self._beside = 0.0
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=loss,
            optimizer=build_optimizer(self.model, config.optimizer),
            config=_deepspeed_config(config, world.world_size, micro),
        )
        if self._stage:
            _create_moments(self._optimizer)
            _count_beside(self._optimizer, lambda: self._beside)
        self._engine.train()

    def backward(
        self, batch: PackedBatch, step_targets: int, drawn: Drawn | None = None
    ) -> torch.Tensor:
        with self.clock.timed("forward"):
            drawn = drawn or self._loss.draw(batch)
            loss: torch.Tensor = self._engine(batch.to(self._world.device), drawn)
        with self.clock.timed("backward"):
            self._engine.backward(loss * (self._average / step_targets))
            if not self._engine.is_gradient_accumulation_boundary():
                self._engine.step()
        return loss.detach()

    def update(self, lr: float, beside: float = 0.0) -> float:
        with self.clock.timed("update"):
            set_rate(self._optimizer, lr)
            self._beside = beside
            if self._stage == 0:
                # There DeepSpeed clips without telling the norm; gradients are reduced by now.
                norm = clip(list(self.model.parameters()), self._clip_norm, beside)
                self._engine.step()
                return norm
            self._engine.step()
            return float(self._engine.get_global_grad_norm())

    def shapes(self) -> dict[str, torch.Size]:
        return self._shapes

    def export(self) -> list[tuple[Piece, torch.Tensor]]:
        if self._stage == 0:
            return export_replica(self.model, self._optimizer, self._world)
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
            restore_replica(self.model, self._optimizer, read, updates)
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
        set_updates(self._optimizer.optimizer, updates)

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

    def scorer(self) -> Scorer:
        return ModelScorer(self.model, self._masks)


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
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_max_live_parameters": LIVE,
        },
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": (config.optimizer.clip_norm or 0.0) if config.zero_stage else 0.0,
        "steps_per_print": 10**9,
    }
    if config.offload == "optimizer":
        settings["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
        settings["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW runs there as well
    if config.precision == "bf16":
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    elif config.precision == "autocast":
        settings["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return settings


def _count_beside(zero: Any, beside: Callable[[], float]) -> None:
    """Have the optimizer count a squared norm of elsewhere into the norm that it clips by."""

    def norm() -> torch.Tensor:
        return torch.tensor(beside(), dtype=torch.float32).sqrt()

    if hasattr(zero, "scaled_global_norm"):  # stages 1 and 2
        own_norm = zero.scaled_global_norm
        zero.scaled_global_norm = lambda: torch.hypot(own_norm(), norm().to(zero.device))
    elif hasattr(zero, "_get_norm_groups"):  # stage 3
        own_groups = zero._get_norm_groups
        zero._get_norm_groups = lambda: [*own_groups(), norm().to(zero.device)]
    else:  # stage 1 in bf16, where every rank takes the norm of the whole gradient
        own_gradients = zero.get_grads_for_norm

        def with_beside(for_clipping: bool = False) -> Any:
            found = own_gradients(for_clipping=for_clipping)
            if for_clipping:
                return found
            dense, experts = found
            return [*dense, norm()], experts

        zero.get_grads_for_norm = with_beside


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
