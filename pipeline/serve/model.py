"""What serving needs of a trained model, wherever it comes from."""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from models import SequentialModel
from pipeline.serve.config import ServingConfig
from pipeline.serve.keys import ItemKeys

if TYPE_CHECKING:
    from pipeline.evaluate import ModelScorer


@dataclass(frozen=True)
class ServedModel:
    """A model in evaluation mode, the keys of its items, and how it takes events.

    window: the most events that it is given at once, None where there is no limit. masks: whether
    token 0 behind the history asks for the next item. hash: see ``hash_of``.
    """

    model: SequentialModel
    keys: ItemKeys
    rule: ServingConfig
    window: int | None
    masks: bool
    hash: str

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.item_scores()[0].device

    @property
    def steps(self) -> bool:
        """Whether an event can be added to a state; else the window is encoded at every event."""
        return self.model.config.causal

    def scorer(self) -> "ModelScorer":
        """The model as evaluation and recommendation ask it."""
        from pipeline.evaluate import ModelScorer  # which needs more than a server has

        return ModelScorer(self.model, self.masks)

    def bytes_per_user(self) -> int:
        """Of a state, the last hidden state with it; the history's items take 4 each besides."""
        kept = self.model.init_state(1) if self.steps else {}
        hidden = 4 * self.model.config.d
        return hidden + sum(part.numel() * part.element_size() for part in kept.values())


def window_of(model: SequentialModel, masks: bool, evaluated: int) -> int | None:
    """The window of a model; ``evaluated`` is what it is evaluated with."""
    limit = model.max_history
    if model.config.causal:
        return limit
    return evaluated if limit is None else min(evaluated, limit - int(masks))


def hash_of(model: SequentialModel, keys: ItemKeys) -> str:
    """SHA-256 of what a state depends on: settings, weights as they lie in memory, item keys."""
    digest = hashlib.sha256()
    settings = model.config.model_dump(mode="json", exclude={"activation_checkpointing"})
    digest.update(json.dumps(settings, sort_keys=True).encode())
    digest.update(keys.hash().encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
