"""Every model and objective through the real loop: it learns, and a stop changes no bit."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Recipe
from pipeline.errors import LonghaulError
from pipeline.evaluate import evaluate
from pipeline.manifest import Dataset
from pipeline.train.trained import load_trained
from tests.conftest import prepare_histories
from tests.train.runs import assert_bit_equal, final_tensors, recipe, records, train_here

CLOZE = {"name": "cloze", "mask_probability": 0.3, "last_only": 0.1}
LAST = {"name": "last_item"}
SMALL_MEMORY = {"experts": 4, "memory_side": 4, "memory_heads": 2}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hydrarec": ({"name": "hydrarec"}, {}),
    "hydrarec-checkpointing": ({"name": "hydrarec", "activation_checkpointing": True}, {}),
    "hydrarec-cloze": ({"name": "hydrarec", "both_ways": True}, CLOZE),
    "elastic": ({"name": "elastic", "memory": "residual", **SMALL_MEMORY}, {}),
    "elastic-last": (
        {"name": "elastic", "form": "encoder", "memory": "experts", **SMALL_MEMORY},
        LAST,
    ),
    "recgrela": ({"name": "recgrela", "blocks": 2}, {}),
    "recgrela-last": (
        {"name": "recgrela", "blocks": 1, "form": "padded", "max_history": 16},
        LAST,
    ),
    "bert4rec": ({"name": "bert4rec"}, CLOZE),
    "lrurec-last": ({"name": "lrurec"}, LAST),
    "control": ({"name": "control"}, {}),
}


def wanted(dataset: Dataset, folder: Path, name: str, pair: str, **changes: Any) -> Recipe:
    model, objective = PAIRS[pair]
    rule = "prefixes" if objective.get("name") == "last_item" else "tiles"
    return recipe(
        dataset,
        folder,
        name,
        model={"d": 8, **model},
        train__objective=objective or {"name": "next_item"},
        data__window={"rule": rule, "length": 16, "bos": True},
        **changes,
    )


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(("engine", "stage"), [("torch", 1), ("deepspeed", 3)])
def test_stopped_and_resumed_is_bit_equal(
    small_set: Dataset, tmp_path: Path, pair: str, engine: str, stage: int
) -> None:
    changes = {"train__engine": engine, "train__zero_stage": stage, "train__steps": 8}
    whole = wanted(small_set, tmp_path, "whole", pair, **changes)
    parted = wanted(small_set, tmp_path, "parted", pair, **changes)
    assert train_here(whole).state == "done"
    assert train_here(parted, stop_before=5).step == 5
    assert train_here(parted).state == "done"
    assert_bit_equal(final_tensors(whole), final_tensors(parted))


@pytest.fixture(scope="module")
def cycles(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Users who walk through twelve items in a circle, from anywhere: the next item is certain.

    Histories are longer than windows, so that all positions are trained.
    """
    histories = [[(u + t) % 12 + 1 for t in range(19 + u % 25)] for u in range(120)]
    return prepare_histories(histories, tmp_path_factory.mktemp("cycles"))


@pytest.mark.parametrize("pair", PAIRS)
def test_it_learns_and_is_asked_as_it_was_trained(
    cycles: Dataset, tmp_path: Path, pair: str
) -> None:
    steps = 200 if PAIRS[pair][1] == CLOZE else 120  # a cloze asks for a third of the items
    learning = {"lr": 0.02, "clip_norm": 1.0, "weight_decay": 0.0}
    run = wanted(
        cycles,
        tmp_path,
        "run",
        pair,
        train__steps=steps,
        train__checkpoint_every=steps,
        train__optimizer=learning,
        data__lane_tokens=1024,
        data__lanes=1,
    )
    run = run.model_copy(update={"model": run.model.model_copy(update={"d": 16, "dropout": 0.0})})
    assert train_here(run).state == "done"
    losses = [record["loss"] for record in records(run) if "loss" in record]
    assert losses[-1] < 0.75 * losses[0]
    trained = load_trained(run.run_url)
    # With the item asked for, as many tokens as a window.
    protocol = run.evaluation.model_copy(update={"seen": "none", "max_history": 15})
    result = evaluate(cycles, trained.scorer(), protocol)
    assert result.metrics["hr@5"] > 0.8  # by chance .42


@pytest.mark.parametrize(
    ("model", "objective", "told"),
    [
        ({"name": "bert4rec"}, {"name": "next_item"}, "bert4rec, which here would see its answers"),
        ({"name": "recgrela", "form": "both_ways"}, {"name": "next_item"}, "would see its answers"),
        ({"name": "elastic", "form": "encoder"}, {"name": "next_item"}, "cloze, last_item"),
        ({"name": "sasrec"}, CLOZE, "sasrec, which here sees no later items"),
    ],
)
def test_a_pair_that_leaks_or_makes_no_sense_is_refused(
    small_set: Dataset, tmp_path: Path, model: dict[str, Any], objective: Any, told: str
) -> None:
    with pytest.raises(LonghaulError, match=f"train.objective .*{told}"):
        recipe(small_set, tmp_path, model={"d": 8, **model}, train__objective=objective)


def test_cloze_trains_first_events_too(small_set: Dataset, tmp_path: Path) -> None:
    with pytest.raises(LonghaulError, match=r"needs data\.window\.bos true"):
        recipe(small_set, tmp_path, model={"name": "bert4rec"}, train__objective=CLOZE)


def test_the_item_asked_for_needs_a_position(small_set: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        LonghaulError, match=r"max_history 16 and the item asked for exceeds model\.max_history 16"
    ):
        recipe(
            small_set,
            tmp_path,
            model={"name": "bert4rec", "max_history": 16},
            train__objective=CLOZE,
            data__window={"length": 16, "bos": True},
        )
