"""What every model offers: encode a packed batch, or take one event at a time."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.batch import PackedBatch
from models.ops import checks, dropout_add_norm

State = dict[str, torch.Tensor]
"""A model's memory of ``n`` users: tensors whose first dimension is ``n``."""

Step = Callable[[torch.Tensor, State], tuple[torch.Tensor, State]]
"""Items int64 ``[n]`` and the state of ``n`` users -> hidden ``[n, d]`` and the new state."""


class ModelConfig(BaseModel):
    """Settings every model has. Each model's own settings stand beside the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    d: int = Field(64, ge=1, description="width of item vectors and hidden states")
    activation_checkpointing: bool = Field(
        False, description="keep only the inputs of blocks and compute the rest again: less memory"
    )

    @property
    def causal(self) -> bool:
        """Whether a hidden state knows nothing of later items."""
        return True

    @property
    def objectives(self) -> tuple[str, ...]:
        """What the model may be trained for without seeing its own answer."""
        return ("next_item", "last_item") if self.causal else ("cloze", "last_item")


class SequentialModel(nn.Module):
    """Hidden states from histories, scored against the item table.

    max_history: events ``step`` can take before the state is full; None where there is no limit.
    item_bias: ``[V + 1]``, added to the scores; None where a model has none.
    """

    config: ModelConfig
    max_history: int | None = None
    item_embedding: nn.Embedding
    item_bias: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("item_bias", None)

    @abstractmethod
    def encode(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states ``[T, d]``.

        Position ``t`` knows its segment's items up to ``t``; where the model is not causal, all.
        """

    @abstractmethod
    def init_state(self, n: int) -> State:
        """The state of ``n`` users without history. ValueError where the model is not causal."""

    @abstractmethod
    def step(self, items: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        """Take the next item of ``n`` users (int64 ``[n]``): hidden ``[n, d]`` and the new state.

        Over a history this equals ``encode`` at its last position, to rounding. Raises ValueError
        past ``max_history``.
        """

    def prepared_step(self) -> "Step":
        """``step`` in evaluation for items from 1 on, to rounding, with less to do at each event.

        What the weights alone decide is computed here, once: later changes to them do not show.
        """
        return self.step

    def run_block(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """``block(*inputs)``; with activation checkpointing nothing inside it is kept."""
        if self.config.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    @staticmethod
    def number_states(states: Iterable[State]) -> State:
        """The states of several blocks as one, each key as ``BLOCK.KEY``."""
        return {
            f"{number}.{key}": value
            for number, state in enumerate(states)
            for key, value in state.items()
        }

    @staticmethod
    def step_blocks(
        blocks: Iterable[Any], x: torch.Tensor, state: State
    ) -> tuple[torch.Tensor, State]:
        """One event through blocks that each ``step(x, state)`` on their part of the state."""
        new: State = {}
        for number, block in enumerate(blocks):
            own = f"{number}."
            part = {k.removeprefix(own): v for k, v in state.items() if k.startswith(own)}
            x, part = block.step(x, part)
            new |= {own + key: value for key, value in part.items()}
        return x, new

    def check_causal(self) -> None:
        """ValueError where a new event changes what is known of all the others."""
        if not self.config.causal:
            raise ValueError(
                f"{self.config.name} looks both ways here, so it has no state that one event "
                "could extend: encode the history"
            )

    def check_length(self, batch: PackedBatch) -> None:
        """ValueError for a segment longer than ``max_history``."""
        if self.max_history is None or len(batch.offsets) == 1:
            return
        lengths = batch.offsets.diff()
        # A GPU is not asked how long it is.
        longest = "" if lengths.is_cuda else f" of {int(lengths.max())} tokens"
        checks.require(
            (lengths <= self.max_history).all(),
            f"a segment{longest} exceeds model.max_history {self.max_history}",
        )

    def item_scores(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Table ``[V + 1, d]`` and bias ``[V + 1]`` or None.

        Scores are ``hidden @ table.T + bias``. Row 0 is the empty history; it is never a candidate.
        """
        return self.item_embedding.weight, self.item_bias

    def item_rows(self, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows ``[n, d]`` and biases ``[n]`` or None of items (int64 ``[n]``) as classes.

        What a loss over some of the classes takes: it has no need of the whole table.
        """
        rows: torch.Tensor = self.item_embedding(items)
        return rows, None if self.item_bias is None else self.item_bias[items]

    def start_rows(
        self, rows: torch.Tensor, generator: torch.Generator, catalogue_size: int
    ) -> None:
        """Fill vectors ``[n, d]`` of new items as the model starts those of a whole table."""
        nn.init.trunc_normal_(rows, std=0.02, a=-0.04, b=0.04, generator=generator)

    def mixing_flops(self, length: int) -> int:
        """Of ``encode``, a token of a history of ``length``, beside the linear maps."""
        return 0

    def undecayed(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: biases and norms."""
        return {name for name, _ in self.named_parameters() if "bias" in name or "norm" in name}

    def diagnostics(self) -> dict[str, float]:
        """Numbers worth a line in the metrics, computed now and then."""
        return {}


def check_room(taken: torch.Tensor, room: int) -> None:
    """ValueError where one of the states, which hold ``taken`` ``[n]`` events, is full.

    Not in an exported step, whose values are not known yet: there the caller counts.
    """
    if torch.compiler.is_exporting():
        return
    if int(taken.max()) >= room:
        raise ValueError(
            f"the state holds model.max_history {room} events already: re-encode the newest window"
        )


def add_and_norm(
    norm: nn.LayerNorm, y: torch.Tensor, x: torch.Tensor | None, p: float
) -> torch.Tensor:
    """LayerNorm(x + dropout(y)), or of dropout(y) alone; drops where ``norm`` is in training."""
    return dropout_add_norm(y, x, norm.weight, norm.bias, p, norm.training, norm.eps)


def truncated_normal_(tensor: torch.Tensor, **_: Any) -> torch.Tensor:
    """Fill with N(0, 0.02^2) cut at two standard deviations (LRURec section 1.6)."""
    return nn.init.trunc_normal_(tensor, std=0.02, a=-0.04, b=0.04)


def initialise(model: nn.Module) -> None:
    """BERT's start: weights and embeddings as ``truncated_normal_``, biases of linear maps zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            truncated_normal_(module.weight.data)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias.data)
