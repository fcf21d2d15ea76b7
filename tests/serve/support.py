"""Models to serve, without a training, and what a full pass over histories says."""

import numpy as np
import torch

from models import SequentialModel
from pipeline.evaluate import ModelScorer, top_k
from pipeline.serve.config import ServingConfig
from pipeline.serve.keys import ItemKeys
from pipeline.serve.model import ServedModel, hash_of, window_of
from tests.models.test_models import BOTH_WAYS, CAUSAL, build_small, packed

CATALOGUE = 30
KEYS = [f"item-{i}" for i in range(1, CATALOGUE + 1)]
"""Of items 1, 2, ...; not in the order of their bytes, as after an append."""


def serve(model: SequentialModel, past: str = "refuse", masks: bool = False) -> ServedModel:
    keys = ItemKeys(np.array([key.encode() for key in KEYS]))
    return ServedModel(
        model=model,
        keys=keys,
        rule=ServingConfig(past_max_history=past),  # type: ignore[arg-type]
        window=window_of(model, masks, 20),
        masks=masks,
        hash=hash_of(model, keys),
    )


def causal(form: str, past: str = "refuse", **changes: object) -> ServedModel:
    name, known = CAUSAL[form]
    return serve(build_small(name, known | changes, torch.float32), past)


def both_ways(form: str) -> ServedModel:
    name, known = BOTH_WAYS[form]
    model = build_small(name, known, torch.float32)
    return serve(model, "re-encode", masks="cloze" in model.config.objectives)


def names(history: list[int]) -> list[str]:
    return [KEYS[item - 1] for item in history]


def full_pass(
    served: ServedModel, histories: list[list[int]], k: int, seen: bool = False
) -> list[list[tuple[str, float]]]:
    """The lists of a full pass over the histories, the newest window of each."""
    windows = [h[-served.window :] if served.window else h for h in histories]
    with torch.inference_mode():
        scores = ModelScorer(served.model, served.masks).score(
            packed([window or [0] for window in windows])
        )
        everything = packed(histories)
        items, values = top_k(scores, k, None if seen else (everything.items, everything.offsets))
    return [
        [(KEYS[item - 1], score) for item, score in zip(row, found, strict=True) if item]
        for row, found in zip(items.tolist(), values.tolist(), strict=True)
    ]


def assert_same_lists(
    found: list[list[tuple[str, float]]], wanted: list[list[tuple[str, float]]]
) -> None:
    """Equal items in equal order; scores to rounding."""
    assert [[item for item, _ in row] for row in found] == [
        [item for item, _ in row] for row in wanted
    ]
    for row, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(
            [score for _, score in row], [score for _, score in other], rtol=1e-4, atol=1e-4
        )
